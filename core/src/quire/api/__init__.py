"""The only part of Quire that plugins import (models also `quire.nn`). Imports no torch."""
