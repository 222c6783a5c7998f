"""The run-time type check of the tests: an int serves where a float is asked for, as for type checkers."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
