"""Which of the published messages are safe. Pure bookkeeping of publisher confirms.

A confirm is for the message with its delivery tag and for no other: py-amqp takes any confirm for
the one it waits for, so that after one that came late every message passes for confirmed. A
returned message is confirmed as well, right after its return: an acknowledgement alone does not
say that a queue took it. Source: RabbitMQ documentation, "Consumer Acknowledgements and Publisher
Confirms", section "Publisher Confirms".
"""

from __future__ import annotations

from workqueue.errors import NotSent, QueueFull, Unroutable
from workqueue.message import Message


class Confirms:
    """Of one channel in confirm mode, from its first publish on."""

    def __init__(self) -> None:
        self.next_tag = 1
        self.pending: dict[int, Message] = {}
        self.returned: dict[int, str] = {}
        self.failures: list[tuple[Message, NotSent]] = []

    def published(self, message: Message) -> int:
        """Count `message`; its delivery tag."""
        tag = self.next_tag
        self.next_tag += 1
        self.pending[tag] = message
        return tag

    def on_return(self, message_id: str | None, text: str) -> None:
        """The broker gave a message back. Its confirm follows: it is the next of that id."""
        for tag, message in self.pending.items():
            if tag not in self.returned and message.id == message_id:
                self.returned[tag] = text
                return

    def on_ack(self, tag: int, multiple: bool) -> None:
        for settled, message in self.take(tag, multiple):
            text = self.returned.pop(settled, None)
            if text is not None:
                self.failures.append((message, Unroutable(f"no queue took it ({text})")))

    def on_nack(self, tag: int, multiple: bool) -> None:
        for settled, message in self.take(tag, multiple):
            self.returned.pop(settled, None)
            full = QueueFull("RabbitMQ refused it: the queue is full, or cannot keep messages now")
            self.failures.append((message, full))

    def take(self, tag: int, multiple: bool) -> list[tuple[int, Message]]:
        """What a confirm is about. One for a tag that is not pending is about nothing."""
        if not multiple:
            message = self.pending.pop(tag, None)
            return [] if message is None else [(tag, message)]
        settled = []
        for pending in self.pending:  # in the order of publishing, so of tags
            if pending > tag > 0:
                break
            settled.append(pending)
        return [(pending, self.pending.pop(pending)) for pending in settled]

    def give_up(self, cause: NotSent) -> None:
        """Nobody knows what became of the rest."""
        self.failures += [(message, cause) for message in self.pending.values()]
        self.pending.clear()
        self.returned.clear()
