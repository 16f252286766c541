"""Engines behind one small interface, each run by the interpreter that has it; see `worker`."""
