"""The HTTP routes, one module a subject. Each declares its access with `api.access.requires` or `api.access.public`."""
