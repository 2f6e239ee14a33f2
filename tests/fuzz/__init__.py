"""Programs that feed what is not AMQP to what reads it: `./dev nox -s fuzz`."""
