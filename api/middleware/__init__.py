"""The outer ASGI layers: request context and error boundary."""
