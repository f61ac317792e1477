"""Where prompts end in the layouts of preference data that people have."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from bayesrm_fast.errors import InputError, shown
from bayesrm_fast.text.texts import Text

ANSWERING = ("assistant", "model", "gpt", "bot", "tool", "function", "ipython")
"""Roles of messages that a response may begin with; any other speaks to the model."""

INSTRUCTING = ("system", "developer")
"""Roles of messages that a conversation begins with."""

HUMAN, ASSISTANT = "Human:", "Assistant:"
"""Who speaks in a dialogue that is one string, as in hh-rlhf; each turn after a blank line."""

REPLY = f"\n\n{ASSISTANT}"

TURN = re.compile(rf"(?:^\s*|\n\n)({HUMAN}|{ASSISTANT})")

SHORTEST_REPEATED = 10
"""Characters of a single word that counts as repeated: who says "Hello!" is answered "Hello!"."""

REPEATED = "the responses begin with the prompt, which is read once; give lists of messages if that is no repetition"
ECHOED = "the response begins with the prompt, and is scored as it is; if it repeats the prompt, take that away"
ALONE = "there is no prompt, so that the responses are scored as the whole texts that they are, without a chat template"


@dataclass(frozen=True)
class Separated:
    """A prompt and what follows it, with no message and no word in both.

    Attributes:
        prompt: None where the responses are whole texts, and nobody can tell where their prompt ends.
        responses: of the prompt.
        warning: how the row was read, where it could be read otherwise.
    """

    prompt: Text | None
    responses: list[Text]
    warning: str | None = None


def separated(prompt: Text | None, responses: Sequence[Text], names: Sequence[str], where: str) -> Separated:
    """Prompt and responses of any layout.

    Args:
        prompt: a checked text that the responses may repeat; None where they imply it.
        responses: checked texts, at least one.
        names: what an error calls the responses.
        where: what an error calls the row.

    Raises:
        InputError: responses that begin differently, or that do not answer the prompt.
    """
    responses = list(responses)
    if prompt is None:
        return _implied(responses, names, where)
    if any(not isinstance(response, str) for response in responses):
        return _after_conversations(prompt, responses, names, where)
    if isinstance(prompt, str) and _are_strings(responses):
        return _after_string(prompt, responses)
    return Separated(prompt, responses)


def is_dialogue(text: Any) -> bool:
    """Whether a text is a dialogue in one string."""
    return isinstance(text, str) and text.lstrip().startswith(HUMAN)


def turns(dialogue: str) -> list[dict[str, str]]:
    """The messages of a dialogue in one string."""
    _, *pieces = TURN.split(dialogue)
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def as_messages(prompt: Text, response: Text) -> tuple[list[Any], list[Any]]:
    """The messages of a prompt and of its response, of which either may be a string."""
    if isinstance(prompt, str) and isinstance(response, str) and response.startswith(ASSISTANT) and is_dialogue(prompt):
        return turns(prompt), turns(response)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    given = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
    return asked, given


def as_continuation(prompt: str, response: str) -> tuple[str, str]:
    """The two as a policy writes one after the other, with nothing between; who speaks belongs to the prompt."""
    if is_dialogue(prompt) and response.startswith(ASSISTANT):
        return prompt + REPLY, response.removeprefix(ASSISTANT)
    return prompt, response


def _implied(responses: list[Text], names: Sequence[str], where: str) -> Separated:
    if _are_strings(responses):
        if all(map(is_dialogue, responses)):
            return _cut_dialogues(responses, names, where)
        firsts = {(text.split(None, 1) or [""])[0] for text in responses}
        if len(responses) == 1 or len(firsts) > 1:
            raise InputError(f"{where} has no prompt, and {_listed(names)} share no beginning that could be one")
        return Separated(None, list(responses), ALONE)
    if any(isinstance(response, str) for response in responses):
        raise InputError(f"{where} has no prompt, and {_listed(names)} are neither all strings nor all conversations")
    conversations: Sequence[Any] = responses
    first = conversations[0]
    most = min(map(len, conversations)) - 1
    shared = next((i for i in range(most) if any(one[i] != first[i] for one in conversations)), most)
    if all(message["role"] in INSTRUCTING for message in first[:shared]):
        raise InputError(f"{where} has no prompt, and {_listed(names)} share no first message that could be one")
    return Separated(first[:shared], [one[shared:] for one in conversations])


def _after_conversations(prompt: Text, responses: list[Text], names: Sequence[str], where: str) -> Separated:
    openings = {
        name: response[: _repeated(prompt, response)]
        for name, response in zip(names, responses, strict=True)
        if not isinstance(response, str)
    }
    asked = [{"role": "user"}] if isinstance(prompt, str) else prompt
    is_asked_next = asked[-1]["role"] in (*ANSWERING, *INSTRUCTING)
    for name, response in zip(names, responses, strict=True):
        role = ANSWERING[0] if isinstance(response, str) else response[0]["role"]
        if role not in ANSWERING and not openings[name] and (role in INSTRUCTING or not is_asked_next):
            raise InputError(
                f"{where}: {name} begins with a message of the role {shown(role)} that does not repeat the prompt: "
                "give whole conversations that begin with the prompt, or the messages after it alone"
            )
    first = next(iter(openings.values()))
    if any(opening != first for opening in openings.values()):
        raise InputError(f"{where}: {_listed(names)} do not repeat the prompt alike: give both as whole conversations")
    if not first:
        is_begun = len(openings) == len(responses) and asked[-1]["role"] in INSTRUCTING
        return (
            _implied([[*asked, *one] for one in responses], names, where) if is_begun else Separated(prompt, responses)
        )
    return Separated(first, [one if isinstance(one, str) else one[len(first) :] for one in responses])


def _repeated(prompt: Text, conversation: Sequence[Any]) -> int:
    """Messages up to the end of a prompt that a whole conversation repeats; 0 where it does not."""
    if conversation[0]["role"] in ANSWERING:
        return 0
    found: list[Any] = [without_spacing(message) for message in conversation]
    if isinstance(prompt, str):  # whatever the role of who asks is called
        wanted: list[Any] = [prompt.split()]
        found = [None if message["role"] in ANSWERING else message["content"] for message in found]
    else:
        wanted = [without_spacing(dict(message)) for message in prompt]
    ends = range(len(wanted), len(found))
    return next((end for end in ends if found[end - len(wanted) : end] == wanted), 0)


def without_spacing(message: dict[str, Any]) -> dict[str, Any]:
    """A message with the words of its content, by which it is known again."""
    return message | {"content": (message.get("content") or "").split()}


def _after_string(prompt: str, responses: list[str]) -> Separated:
    is_open = is_dialogue(prompt) and prompt.rstrip().endswith(REPLY)
    rests = [_after_words(prompt, response) for response in responses]
    may_be_repeated = len(responses) > 1 and (len(prompt.split()) > 1 or len(prompt.strip()) >= SHORTEST_REPEATED)
    is_repeated = (may_be_repeated or is_open) and all(rest is not None for rest in rests)
    if is_open:  # what is said next belongs to the turn that the prompt has begun
        begun = len(prompt.rstrip()) - len(REPLY)
        texts = responses if is_repeated else [prompt + response for response in responses]
        if all(text.startswith(prompt.rstrip()) for text in texts):
            return Separated(prompt[:begun], [text[begun + 2 :] for text in texts])
    if is_repeated:
        return Separated(prompt, [rest for rest in rests if rest is not None], REPEATED)
    # Of several, some begin with the prompt's words because models do so: 13 of AlpacaEval's 480 prompts, none all.
    return Separated(prompt, list(responses), ECHOED if len(responses) == 1 and rests[0] is not None else None)


def _after_words(prompt: str, response: str) -> str | None:
    """What follows the prompt's words in a response that begins with them; None where it does not."""
    words = prompt.split()
    if not words or not response.lstrip().startswith(words[0]):
        return None
    found = response.split(None, len(words))
    if found[: len(words)] == words:
        return "".join(found[len(words) :])
    is_end = not prompt[-1].isalnum()  # "Hi" is no beginning of "Hiking", and of "Hi!" none that is repeated
    return response[len(prompt) :] if is_end and response.startswith(prompt) else None


def _cut_dialogues(texts: list[str], names: Sequence[str], where: str) -> Separated:
    least, greatest = min(texts), max(texts)  # what these two share in lexicographic order, all share
    shared = next((i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), len(least))
    end = least.rfind(REPLY, 0, shared)
    if end < 0:
        raise InputError(f"{where} has no prompt, and {_listed(names)} share no beginning up to {REPLY!r}")
    return Separated(least[:end], [text[end + 2 :] for text in texts])


def _are_strings(responses: Sequence[Any]) -> TypeGuard[list[str]]:
    return all(isinstance(response, str) for response in responses)


def _listed(names: Sequence[str]) -> str:
    if len(names) > 3:
        return "the responses"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
