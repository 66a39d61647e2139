"""The HTTP API, the command line and the supervisor: where `security` and `inference` are put together."""
