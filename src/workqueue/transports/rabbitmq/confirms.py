"""Which of the published messages are safe. Pure bookkeeping of publisher confirms.

A confirm is for the message with its delivery tag and for no other: py-amqp takes any confirm for
the one it waits for, so that after one that came late every message passes for confirmed. A
returned message is confirmed as well, right after its return: an acknowledgement alone does not
say that a queue took it. Source: RabbitMQ documentation, "Consumer Acknowledgements and Publisher
Confirms", section "Publisher Confirms".

Confirms come nearly in order, and most of them for many messages at once. So what is settled is
one number, below which all are, and the few beyond it; settling a thousand costs as much as one.
"""

from __future__ import annotations

from collections.abc import Iterable

from workqueue.errors import NotSent, QueueFull, Unroutable
from workqueue.message import Message


class Confirms:
    """Of one channel in confirm mode, from its first publish on.

    `messages` are those published since all before them were settled, and `first` is the tag of
    the first one. All tags below `reached` are settled, and those in `beyond`.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.first = 1
        self.reached = 1
        self.beyond: set[int] = set()
        self.returned: dict[int, str] = {}
        self.failures: list[tuple[Message, NotSent]] = []

    @property
    def next_tag(self) -> int:
        return self.first + len(self.messages)

    @property
    def open(self) -> int:
        """How many messages are neither confirmed nor refused."""
        return self.first + len(self.messages) - self.reached - len(self.beyond)

    def open_tags(self) -> list[int]:
        return [tag for tag in range(self.reached, self.next_tag) if tag not in self.beyond]

    def open_messages(self) -> list[Message]:
        return [self.messages[tag - self.first] for tag in self.open_tags()]

    def published(self, message: Message) -> None:
        """Count `message`: its delivery tag was `next_tag`."""
        self.messages.append(message)

    def on_return(self, message_id: str | None, text: str) -> None:
        """The broker gave a message back. Its confirm follows: it is the next of that id."""
        for tag in range(self.reached, self.next_tag):
            if tag in self.returned or tag in self.beyond:
                continue
            if self.messages[tag - self.first].id == message_id:
                self.returned[tag] = text
                return

    def on_ack(self, tag: int, multiple: bool) -> None:
        if self.returned:
            self.fail_returned(self.covered(tag, multiple))
        self.settle(tag, multiple)

    def on_nack(self, tag: int, multiple: bool) -> None:
        for refused in self.covered(tag, multiple):
            self.returned.pop(refused, None)
            full = QueueFull("RabbitMQ refused it: the queue is full, or cannot keep messages now")
            self.failures.append((self.messages[refused - self.first], full))
        self.settle(tag, multiple)

    def covered(self, tag: int, multiple: bool) -> list[int]:
        """The open tags that a confirm is about. One for a tag that is not open is about none."""
        if multiple:
            return [one for one in self.open_tags() if one <= tag or tag == 0]
        return [tag] if self.reached <= tag < self.next_tag and tag not in self.beyond else []

    def fail_returned(self, tags: Iterable[int]) -> None:
        for tag in tags:
            text = self.returned.pop(tag, None)
            if text is not None:
                unroutable = Unroutable(f"no queue took it ({text})")
                self.failures.append((self.messages[tag - self.first], unroutable))

    def settle(self, tag: int, multiple: bool) -> None:
        last = self.next_tag - 1
        if multiple:
            self.reached = max(self.reached, min(tag or last, last) + 1)
            self.beyond = {one for one in self.beyond if one >= self.reached}
        elif self.reached <= tag <= last:
            self.beyond.add(tag)
        while self.reached in self.beyond:
            self.beyond.remove(self.reached)
            self.reached += 1

    def give_up(self, cause: NotSent) -> None:
        """Nobody knows what became of the rest."""
        self.failures += [(message, cause) for message in self.open_messages()]
        self.close()

    def close(self) -> None:
        """Let go of all messages; those that were open are settled, whatever the broker says."""
        self.first = self.reached = self.next_tag
        self.messages = []
        self.beyond.clear()
        self.returned.clear()
