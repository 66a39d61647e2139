"""Plain ASGI layers. `api/app.py` stacks them; each raises this package's errors and answers nothing itself."""
