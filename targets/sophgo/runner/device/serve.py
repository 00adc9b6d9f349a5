"""The keyboard demo's protocol, a line in, for `@pred` and `@debug` lines out.

    #c          the character c was typed
    @pred[N]    suggest up to N characters (8), ending before a newline; prints them as one line
    @accept     the suggestion was taken
    @back       the last character was deleted
    @clear      everything typed was deleted
    @debug      print what is held

What the original got wrong about positions is right here: the cache holds exactly the text that was typed and
accepted, each character at its own position. A suggestion is speculation: its rows are taken back by whatever
comes next, unless it is accepted. Where it ended at a newline, and at the very beginning, the model goes on
from a space that nobody sees, as in the original; `#c` takes that space's place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO

from .loop import Loop
from .numbers import largest
from .tensors import Failure

READY = "## READY ##"
SUGGESTED = 8
NEWLINE, SPACE = 10, 32


class Keyboard:
    """The text, the suggestion, and the loop whose cache follows them."""

    def __init__(self, loop: Loop, vocab_size: int) -> None:
        self._loop, self._vocab_size = loop, vocab_size
        #: Tokens after the prefilled context, and whether a person sees them; how many the cache holds, and
        #: the logits after the last of these.
        self._text: list[tuple[int, bool]] = []
        self._fed, self._logits = 0, b""
        #: What is suggested, how many tokens were fed for it, and whether a newline ended it. `_lead` is the
        #: unseen token that the next one begins from.
        self._suggestion: list[int] = []
        self._tried, self._ended = 0, False
        self._lead: int | None = SPACE
        self.clear()

    def clear(self) -> None:
        """Back to the prefilled context."""
        self._loop.reset()
        self._base = len(self._loop.cache.positions)
        self._text, self._fed, self._logits, self._lead = [], 0, b"", SPACE
        self._drop()

    def type(self, character: str) -> None:
        """A character comes after the text."""
        token = ord(character)
        if token >= self._vocab_size:
            raise Failure(
                f"{character!r} is not among the {self._vocab_size} characters that the model knows"
            )
        self._drop()
        self._lead = None
        self._text.append((token, True))
        self._follow()

    def suggest(self, count: int) -> str:
        """Up to `count` characters that may come next; the same again if nothing happened in between."""
        self._drop()
        self._follow()
        logits = self._logits if self._lead is None else self._try(self._lead)
        while len(self._suggestion) < count:
            token = largest(logits)
            if token == NEWLINE:
                self._ended = True
                break
            self._suggestion.append(token)
            if len(self._suggestion) < count:
                logits = self._try(token)
        return self.suggestion

    def accept(self) -> None:
        """The suggestion becomes text; its rows are kept, and what was not fed of it will be."""
        if self._suggestion:
            lead = [] if self._lead is None else [(self._lead, False)]
            self._text += [*lead, *((token, True) for token in self._suggestion)]
            self._fed += self._tried
            self._logits, self._lead = b"", None
        if self._ended:
            self._lead = SPACE
        self._suggestion, self._tried, self._ended = [], 0, False

    def back(self) -> None:
        """The last visible character is gone, and with it the unseen space before it."""
        self._drop()
        while self._text and not self._text[-1][1]:
            self._text.pop()
        if self._text:
            self._text.pop()
        while self._text and not self._text[-1][1]:
            self._text.pop()
        self._lead = None if self._text else SPACE
        self._fed, self._logits = min(self._fed, len(self._text)), b""
        self._loop.cache.rewind(self._base + self._fed)

    @property
    def text(self) -> str:
        """What a person typed and accepted."""
        return "".join(chr(token) for token, seen in self._text if seen)

    @property
    def suggestion(self) -> str:
        """What was suggested and neither accepted nor dropped."""
        return "".join(map(chr, self._suggestion))

    @property
    def state(self) -> str:
        """For `@debug`."""
        held = self._loop.cache.positions
        return (
            f"text={self.text!r} buffer={self.suggestion!r} ptr={len(self._text)} fed={self._fed} "
            f"tried={self._tried} prefilled={self._base} rows={len(held)} next={self._loop.next_position}"
        )

    def _follow(self) -> None:
        """Feed the text that the cache does not hold; after `back` its last token again, for its logits."""
        if self._lead is None and not self._logits and self._fed == len(self._text):
            self._fed -= 1
            self._loop.cache.rewind(self._base + self._fed)
        for token, _ in self._text[self._fed :]:
            self._logits = self._loop.step(token)
            self._fed += 1

    def _try(self, token: int) -> bytes:
        logits = self._loop.step(token)
        self._tried += 1
        return logits

    def _drop(self) -> None:
        """Forget the suggestion and its rows."""
        self._suggestion, self._tried, self._ended = [], 0, False
        self._loop.cache.rewind(self._base + self._fed)


def serve(keyboard: Keyboard, lines: Iterable[str], out: IO[str]) -> None:
    """Answer lines until they end. A `@pred` is always answered by one line, whatever happens."""
    print(READY, file=out, flush=True)
    for line in lines:
        line = line.rstrip("\r\n")
        try:
            _answer(keyboard, line, out)
        except Failure as error:
            print(f"serve: {line!r}: {error}", file=sys.stderr, flush=True)
            if line.startswith("@pred"):
                print(keyboard.suggestion, file=out, flush=True)


def _answer(keyboard: Keyboard, line: str, out: IO[str]) -> None:
    if line.startswith("#"):
        if len(line) != 2:
            raise Failure("should be # and one character")
        keyboard.type(line[1])
    elif line.startswith("@pred"):
        print(keyboard.suggest(_count(line[len("@pred") :])), file=out, flush=True)
    elif line == "@accept":
        keyboard.accept()
    elif line == "@back":
        keyboard.back()
    elif line == "@clear":
        keyboard.clear()
    elif line == "@debug":
        print(keyboard.state, file=out, flush=True)
    elif line:
        raise Failure("is no command; use #c, @pred[N], @accept, @back, @clear or @debug")


def _count(text: str) -> int:
    """`12`, ` 12`, `[12]` -> 12; nothing -> 8."""
    digits = text.strip(" []")
    if not digits:
        return SUGGESTED
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise Failure(f"{digits!r} is not a number of characters")
    return int(digits)
