"""What can go wrong between a picture and its labels. No HTTP status lives here: `api/errors.py` holds the one table.

`str(error)` is safe to show to the caller: it never holds a path, a stack trace or anything that the caller sent.
"""


class InferenceError(Exception):
    """The root of everything this package raises on purpose."""


class UnsupportedImage(InferenceError):
    """The bytes are not a JPEG, PNG or WebP picture."""


class InvalidImage(InferenceError):
    """The bytes begin like a picture, yet cannot be decoded into one (or would cost too much to decode)."""


class ImageTooLarge(InferenceError):
    """The picture's header promises more pixels, or a longer side, than is allowed."""


class DecoderExhausted(InferenceError):
    """The decoder ran out of memory: the server's trouble, not the caller's."""


class EngineUnavailable(InferenceError):
    """No engine is ready: it is still starting, or it has just died. `retry_after_s` is a guess in whole seconds, at least 1."""

    def __init__(self, message: str = "The model is not ready.", *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(InferenceError):
    """The queue is full, or the predicted wait is longer than the deadline allows. `retry_after_s` is measured, at least 1."""

    def __init__(self, message: str = "The server is at capacity.", *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(InferenceError):
    """The deadline passed before the picture reached the device."""

    def __init__(self, message: str = "The prediction did not finish before its deadline.") -> None:
        super().__init__(message)


class InferenceFailed(InferenceError):
    """The forward pass itself failed (a bug or a broken device): an internal error."""


class ModelLoadError(InferenceError):
    """The model cannot be served as configured; the message is for the operator and says what to do. Raised at start only."""
