"""RabbitMQ, through kombu: durable queues, confirmed publishing, acknowledgement after the work.

Reading order, the way a message goes:

    address     a URL, taken strictly
    topology    which queues, with which arguments, for which version: pure
    wire        frames, to and from bytes: pure
    link        one connection: kombu's handshake and methods over our reads and writes
    confirms    which published message is safe: pure
    survey      what a queue is like, as far as its user may know
    gate        whether a queue is being migrated
    ladder      how a message waits for its time: pure
    delays      looks at the ladder, and makes what of it is missing
    priorities  what they are worth in a queue
    destinations  looks at the queues that a sender publishes to
    publisher   sends, in a window
    copier      publishes the copies that retries and dead letters make, beside a consumer
    owed        when a copy that could not be placed is tried again, and in which form: pure
    causes      why a publish failed, as far as the copier must tell
    consumer    lends deliveries and settles them
    driver      the transport that makes them, and looks at queues
    management  figures that only RabbitMQ's HTTP API has
    verdicts    what is well with a broker and its queues, and what is not: pure
    examination looks a broker over for `workqueue doctor`
"""
