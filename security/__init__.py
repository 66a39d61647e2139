"""Who may do what: keys, tokens, clients, revocations, and the ASGI layers that enforce them. Knows ASGI, not FastAPI."""
