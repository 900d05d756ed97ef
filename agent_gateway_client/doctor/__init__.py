"""Finds the broken link between an agent's trace and its gateway, with one probe call that both ends report on."""
