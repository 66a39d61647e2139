"""Decoding in processes of their own, which hold no secret and may die: an API worker hands a picture out and gets pixels back.

`pool` shares the pictures out among the processes, by client in turn; `decoder` is one such process as the worker sees it, and `start` how
it comes to be; `process` is what runs in it; `messages` is what they say to one another. See docs/decisions/0006.
"""
