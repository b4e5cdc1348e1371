"""Begin with the last lines of an output: the host tells where they begin, and what lies before need not travel first.

A mirror that is nearly whole is completed on the way. One that is far behind stays the prefix that it is, the lines
come past it, and it is completed another time: at the end of a followed run, or by a command that wants all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.errors import ProtocolError
from remote_train.follow import OUTPUTS_ALWAYS, Following, Wish
from remote_train.listener import Silent
from remote_train.watch import HEAD_BYTES, read_pieces

if TYPE_CHECKING:
    from remote_train.session import Session

FAR = 1 << 20
"""Bytes a mirror may be behind to be completed before anything is shown."""


def find_tail(following: Following, session: Session, lines: int) -> None:
    """Have a following begin with the last lines of what is shown, as its host has them now."""
    wish, mirror = following.wish, following.mirror
    facts = {"run": wish.run.id, "attempt": wish.attempt, "lines": lines}
    ranks = sorted(wish.shown | ({0} if wish.until_end else set()))  # rank 0 has the metrics
    asked = {rank: session.submit("tail", rank=rank, **facts) for rank in ranks}
    for rank, number in asked.items():
        _place(following, str(rank), session.wait(number))
    if mirror.ahead:
        beside = OUTPUTS_ALWAYS if wish.until_end else ()
        following.change_outputs([*map(str, ranks), *beside])


def _place(following: Following, name: str, place: dict[str, Any]) -> None:
    offset, size = place.get("offset"), place.get("size")
    if not (isinstance(offset, int) and isinstance(size, int) and 0 <= offset <= size):
        raise ProtocolError(f"{following.link.host.name} said that the last lines begin at {place!r}"[:200])
    mirror = following.mirror
    if size - mirror.offsets[name] > FAR and offset > mirror.offsets[name]:
        mirror.skip_to(name, offset)
    else:
        following.shown_from[name] = offset


def show_held(following: Following) -> None:
    """Tell what of the wanted output is mirrored already, up to where the following goes on."""
    mirror = following.mirror
    for rank in sorted(following.wish.shown):
        name = str(rank)
        end = 0 if name in mirror.ahead else mirror.offsets[name]
        for piece in read_pieces(
            mirror.attempt.output(name), min(following.shown_from.get(name, 0), end), end
        ):
            following.listener.output(rank, piece)


def bring_head(following: Following, session: Session) -> Session:
    """Mirror the beginning of rank 0's output, without which the metrics of its last lines mean little.

    Returns the session to go on with: another one when this was lost.
    """
    wish, mirror = following.wish, following.mirror
    if "0" not in mirror.ahead or not mirror.writing or mirror.attempt.offset("0") >= HEAD_BYTES:
        return session
    part = Wish(wish.run, wish.attempt, ["0"], set(), until_end=False, give_up=wish.give_up)
    head = Following(part, following.link, Silent(), writing=True)
    head.until["0"] = HEAD_BYTES
    head.begin(session)
    head.run()
    return head.session or session


def complete_mirror(following: Following, outputs: list[str]) -> None:
    """Bring everything of an ended run that went past its mirror, verified; the following goes on with that mirror."""
    wish = following.wish
    whole = Following(
        Wish(wish.run, wish.attempt, outputs, set(), give_up=wish.give_up),
        following.link,
        Silent(),
        writing=following.mirror.writing,
    )
    if following.session is not None:
        whole.begin(following.session)
    whole.run()
    following.mirror, following.session = whole.mirror, whole.session
