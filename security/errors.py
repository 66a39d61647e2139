"""What the gate refuses, and why. No HTTP status lives here: `api/errors.py` holds the one table.

`str(error)` is safe to show to the caller: it never holds a secret, a token or anything else that the caller sent.
"""


class SecurityError(Exception):
    """The root of everything this package raises on purpose."""


class MissingToken(SecurityError):
    """The request carries no credentials at all (RFC 6750 section 3: the challenge then has no error code)."""

    def __init__(self, message: str = "This resource needs a bearer token.") -> None:
        super().__init__(message)


class InvalidToken(SecurityError):
    """The token is malformed, forged, expired, revoked or not meant for us. `cause` is for logs and metrics: a fixed word."""

    def __init__(self, cause: str = "malformed") -> None:
        super().__init__("The access token is not valid.")
        self.cause = cause


class InsufficientScope(SecurityError):
    """The token is good but lacks the scope `required`."""

    def __init__(self, required: str) -> None:
        super().__init__("The access token lacks a scope that this resource needs.")
        self.required = required


class BodyTooLarge(SecurityError):
    """The request's body is larger than the limit, by its own declaration or by count; or so is what it stands for, `what`."""

    def __init__(self, limit_bytes: int, what: str = "request body") -> None:
        super().__init__(f"The {what} is larger than the {limit_bytes} bytes that are allowed.")


class UnsupportedContentEncoding(SecurityError):
    """The request's body is compressed (RFC 9110 section 15.5.16): refused undecoded, since a few bytes may unpack into any number."""

    def __init__(self, message: str = "A request body must not be compressed: send it without Content-Encoding.") -> None:
        super().__init__(message)


class PreflightRefused(SecurityError):
    """A CORS preflight asks for what is not allowed across origins."""


class RateLimited(SecurityError):
    """The caller has used up its own limit; `retry_after_s` seconds from now, at least 1, what was refused could be let through."""

    def __init__(self, retry_after_s: int, message: str = "The limit on requests is used up: wait as Retry-After says.") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyInFlight(SecurityError):
    """The client has as many requests in flight as its tier allows."""

    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("Too many requests of this client are in flight: wait for the answer to one of them.")


class TooManyBodies(SecurityError):
    """The bodies that are being served hold all the memory that they may; `retry_after_s` is for how long one is held, at least 1."""

    def __init__(self, message: str = "Too many uploads are being served.", *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MalformedRequest(SecurityError):
    """The request stops being valid HTTP in the middle of its body."""


class SlowClient(SecurityError):
    """The client does not send its request in time."""

    def __init__(self, message: str = "The request was not received in time.") -> None:
        super().__init__(message)


class OAuthError(SecurityError):
    """A refusal of the token endpoint, in the words of RFC 6749 section 5.2.

    Args:
        code: `invalid_request`, `invalid_client`, `invalid_grant`, `unauthorized_client`, `unsupported_grant_type` or `invalid_scope`.
        description: one public sentence.
    """

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code


class ClientAuthenticationFailed(OAuthError):
    """`invalid_client`: there is no such client, or that is not its secret, or it is disabled. `client_id` is what was presented."""

    def __init__(self, client_id: str) -> None:
        super().__init__("invalid_client", "Client authentication failed.")
        self.client_id = client_id


class RegistryError(SecurityError):
    """The client registry cannot do what was asked (no such client, a name already taken); the message is for the operator."""


class RegistryMissing(RegistryError):
    """There is no file where the registry should be."""


class RegistryUnavailable(RegistryError):
    """The client registry's database does not answer, or refuses the operation: the server's trouble, not the caller's."""

    def __init__(self, message: str = "The client registry is not available.") -> None:
        super().__init__(message)


class TooManyRevocations(RegistryError):
    """The client has as many revoked tokens as it may have (RFC 7009 section 2.2.1 then answers 503: the token is still good)."""

    retry_after_s = 60

    def __init__(self, message: str = "Too many tokens of this client are revoked: disable the client instead.") -> None:
        super().__init__(message)


class KeysError(SecurityError):
    """The keys folder cannot be used as it is; the message is for the operator and says what to do."""


class KeySetUnusable(SecurityError):
    """Another issuer's keys could not be had, or cannot be used; the message is for the operator and shows nothing that was received."""
