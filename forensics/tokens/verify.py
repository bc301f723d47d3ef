"""Can the model say the token at all? Three prompts in which nothing but the token can come next.

verifier = Verifier(tokenizer, forward, categories, trained)
can_copy(verifier.controls(ids))        well-trained tokens first: else the rest says nothing
verifier.max_prob(ids)                  P(token), the highest over prompts and positions

Each prompt is written with a placeholder, whose id is then exchanged for the token's. What comes
before its first place is the same for all tokens and is read once. The cheapest prompt goes first,
and a token that it rejects is not asked again: its P is then a lower bound. Source: Land & Bartolo
2024, section 3.3; wording and controls are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from forensics.model.forward import Forward
from forensics.progress import ProgressCallback, silent
from forensics.tokens.categories import Categories

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERIFIED, STRONG = 0.01, 0.001  # P below which a token is under-trained, and strongly so
POSITIONS = 3  # next tokens looked at: a model may put a space or a quotation mark first
CONTROLS = 24
REPEATED = 0.1  # P of a control that was repeated, if it is also …
LIFT = 10.0  # … so many times what the same prompt gives it when it is about another token
SHARE = 0.9  # of the controls that must be repeated
PLACEHOLDER = 0.5  # P that the placeholder itself must reach in one of the prompts
TRIED = 5  # placeholders
BATCH = 2048  # tokens read at a time
LEAST_SHOTS = 2


@dataclass(frozen=True)
class Wording:
    """`shots` times question and answer, then the question and the answer up to the token, {} being
    its place.
    """

    name: str
    shots: int
    preamble: str
    question: str
    answer: str

    def text(self, token: str, shots: int) -> str:
        """Return the prompt with a token put in."""
        question, answered = self.question.replace("{}", token), self.answer.replace("{}", token)
        return (
            self.preamble
            + (question + answered) * shots
            + question
            + self.answer.partition("{}")[0]
        )

    def places(self, shots: int) -> int:
        """How often the token stands in the text."""
        per_repetition = (self.question + self.answer).count("{}")
        return per_repetition * shots + self.question.count("{}")


WORDINGS = (
    Wording(
        "explanation",
        0,
        "A patient tutor answers questions about words and always quotes the word first.\nStudent:"
        " Tell me about the word “zorbelin”.\nTutor: The word “zorbelin” is one I have never met.",
        "\nStudent: Tell me about the word “{}”.\nTutor: The word",
        " “{}”",
    ),
    Wording(
        "repeats", 49, "One and the same string, printed over and over without a gap:\n", "{}", ""
    ),
    Wording(
        "device",
        20,
        "A device that plays back whatever it records, unchanged. The log of its trials:",
        "\nIn [{}] Out",
        " [{}]",
    ),
)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Ids of a wording (T,), the places of the token in it, and what was read before the first of
    them.
    """

    name: str
    ids: Tensor
    places: Tensor
    past: object
    first: int  # place of the first


@dataclass(frozen=True)
class Control:
    """A well-trained token that went through the same prompts; base: its P where the prompt is
    about the placeholder.
    """

    id: int
    max_prob: float
    base: float

    @property
    def repeated(self) -> bool:
        """Whether the model repeated the token as it repeats others."""
        return bool(self.max_prob >= np.float32(max(REPEATED, min(LIFT * self.base, PLACEHOLDER))))


class Verifier:
    """Prompts around a placeholder that this model repeats; without one `placeholder` is None, and
    `why` tells why.
    """

    def __init__(
        self, tokenizer: Tokenizer, forward: Forward, categories: Categories, trained: np.ndarray
    ) -> None:
        """`trained`: (n,) over the categories' ids, from 0 to 1, high for tokens that look well
        trained.
        """
        self.forward = forward
        self._tokenizer = tokenizer
        self.placeholder: int | None = None
        self.prompts: list[Prompt] = []
        self.base = torch.zeros(
            0
        )  # (V,) the highest P of every token in the placeholder's own prompts
        self.why = (
            "no token is spelled the same way throughout a prompt, so that none can be the"
            " placeholder"
        )
        tried = 0
        for place in _placeholders(categories, trained):
            id = int(categories.ids[place])
            prompts = self._prompts(id, categories.text[place])
            if prompts is None:
                continue
            if not prompts:
                self.why = f"its {forward.context} positions are too few for any of the prompts"
                break
            base = torch.stack([self._distribution(prompt, id) for prompt in prompts]).amax(0)
            if base[id] >= PLACEHOLDER:
                self.placeholder, self.prompts, self.base = id, prompts, base
                break
            tried += 1
            self.why = (
                f"it repeats none of the {tried} well-trained tokens that were to be the"
                " placeholder"
            )
            if tried == TRIED:
                break

    def controls(self, ids: np.ndarray) -> list[Control]:
        """Each of these tokens through the prompts until it is repeated."""
        base = self.base[torch.from_numpy(ids)].numpy()
        p, _ = self.max_prob(ids, np.maximum(REPEATED, np.minimum(LIFT * base, PLACEHOLDER)))
        return [Control(int(i), float(q), float(b)) for i, q, b in zip(ids, p, base)]

    def max_prob(
        self,
        ids: np.ndarray,
        stop: float | np.ndarray = VERIFIED,
        progress: ProgressCallback = silent,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(P (n,), bound (n,) bool): the highest P of each token; once it reaches `stop`, no more
        is asked, and it is a bound.
        """
        targets, limit = (
            torch.from_numpy(ids),
            torch.from_numpy(np.broadcast_to(np.asarray(stop, np.float32), ids.shape).copy()),
        )
        p, left = torch.zeros(len(ids)), torch.arange(len(ids))
        for prompt in self.prompts:
            if not len(left):
                break
            batch = max(1, BATCH // (len(prompt.ids) - prompt.first))
            for rows in left.split(batch):
                p[rows] = torch.maximum(p[rows], self._ask(prompt, targets[rows], limit[rows]))
                progress(
                    len(ids) - len(left) + int((left <= rows[-1]).sum()),
                    len(ids),
                    f"prompt “{prompt.name}”",
                )
            left = left[p[left] < limit[left]]
        return p.numpy(), (p >= limit).numpy()

    def _ask(self, prompt: Prompt, ids: Tensor, stop: Tensor) -> Tensor:
        """P (B,) of each token after its prompt, the highest of POSITIONS greedy positions, or of
        those until `stop`.
        """
        logits, past = self._start(prompt, ids)
        p, going = torch.zeros(len(ids)), torch.arange(len(ids))
        for position in range(POSITIONS):
            probabilities = logits.softmax(1).gather(1, ids[going, None])[:, 0]
            p[going] = torch.maximum(p[going], probabilities)
            on = p[going] < stop[going]
            if position + 1 == POSITIONS or not on.any():
                break
            if not on.all():
                past, logits, going = (
                    self.forward.take(past, on.nonzero()[:, 0]),
                    logits[on],
                    going[on],
                )
            logits, past = self.forward.read(logits.argmax(1, keepdim=True), past)
        return p

    def _distribution(self, prompt: Prompt, id: int) -> Tensor:
        """Return the highest P (V,) of every token after a prompt about one of them."""
        logits, past = self._start(prompt, torch.tensor([id]))
        highest = logits[0].softmax(0)
        for _ in range(POSITIONS - 1):
            logits, past = self.forward.read(logits.argmax(1, keepdim=True), past)
            highest = torch.maximum(highest, logits[0].softmax(0))
        return highest

    def _start(self, prompt: Prompt, ids: Tensor) -> tuple[Tensor, object]:
        rows = prompt.ids.repeat(len(ids), 1)
        rows[:, prompt.places] = ids[:, None]
        return self.forward.read(
            rows[:, prompt.first :], self.forward.spread(prompt.past, len(ids))
        )

    def _prompts(self, id: int, text: str) -> list[Prompt] | None:
        """Return the wordings in ids, with as many shots as the model has positions for.

        None where the token comes out otherwise.
        """
        prompts = []
        for wording in WORDINGS:
            shots = wording.shots
            while (ids := self._encode(wording.text(text, shots))).count(id) == wording.places(
                shots
            ):
                if len(ids) + POSITIONS - 1 <= self.forward.context:
                    prompts.append(self._read_prefix(wording.name, ids, id))
                    break
                if shots <= LEAST_SHOTS:
                    break
                shots = max(shots // 2, LEAST_SHOTS)
            else:
                return None
        return prompts

    def _encode(self, text: str) -> list[int]:
        encoding = self._tokenizer.encode(text)
        last = max(i for i, added in enumerate(encoding.special_tokens_mask) if not added)
        return encoding.ids[
            : last + 1
        ]  # without what the tokenizer puts behind a text, which ends it

    def _read_prefix(self, name: str, ids: list[int], id: int) -> Prompt:
        places = [i for i, id_there in enumerate(ids) if id_there == id]
        past = self.forward.read(torch.tensor([ids[: places[0]]]), None)[1] if places[0] else None
        return Prompt(name, torch.tensor(ids), torch.tensor(places), past, places[0])


def can_copy(controls: list[Control]) -> bool:
    """Whether so many well-trained tokens are repeated that one which is not says something."""
    return bool(controls) and sum(c.repeated for c in controls) >= SHARE * len(controls)


def choose_controls(
    categories: Categories, trained: np.ndarray, count: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Ids of CONTROLS well-trained tokens, each the nearest in `count` to one of the candidates'
    places (c,).

    `count`, (n,) over the categories' ids, is a token's exposure where that is known, else its id:
    the tokenizer's merges go from the frequent to the rare.
    """
    good = (trained >= 0.5) & _ordinary(categories)
    good[candidates] = False
    pool = np.flatnonzero(good)
    pool = pool[np.argsort(count[pool], kind="stable")]
    picked = (
        candidates[np.linspace(0, len(candidates) - 1, min(CONTROLS, len(candidates))).astype(int)]
        if len(candidates)
        else pool[:CONTROLS]
    )
    chosen: list[int] = []
    for place in picked:
        if not len(pool):
            break
        nearest = int(np.abs(count[pool] - count[place]).argmin())
        chosen.append(int(pool[nearest]))
        pool = np.delete(pool, nearest)
    return categories.ids[chosen]


def _ordinary(categories: Categories) -> np.ndarray:
    """Reachable tokens that are no single bytes, nothing special, and hold some text."""
    return np.array(
        [
            category == "OK" and byte is None and not special and bool(text.strip())
            for category, byte, special, text in zip(
                categories.category, categories.byte, categories.special, categories.text
            )
        ],
        bool,
    )


def _placeholders(categories: Categories, trained: np.ndarray) -> list[int]:
    """Places of tokens that may stand in, in the order to try: six different letters and well
    trained first.
    """

    def rank(place: int) -> tuple[bool, int, float]:
        text = categories.text[place]
        letters = text.isascii() and text.isalpha()
        return (not letters, -min(len(set(text)), 6), -float(trained[place]))

    usable = (
        _ordinary(categories)
        & np.array([text == text.strip() for text in categories.text], bool)
        & (trained >= 0.5)
    )
    return sorted(np.flatnonzero(usable).tolist(), key=rank)[:300]
