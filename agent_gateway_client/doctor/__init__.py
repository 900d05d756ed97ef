"""Which link between an agent's trace and its gateway is broken: one probe call, looked at from both ends."""
