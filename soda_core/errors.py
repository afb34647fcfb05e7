# SPDX-License-Identifier: GPL-3.0-or-later
"""The few error types of the pack.

Every message names the thing at fault (file, key, setting), what was expected, what was found and what to do.
"""


class SodaError(ValueError):
    """Base of all errors this pack raises for a user's mistake or unusable data."""


class SettingsError(SodaError):
    """A setting outside its allowed values."""


class ShapeError(SodaError):
    """Tensors whose shapes do not fit each other."""


class ManifoldError(SodaError):
    """A matrix that should be orthogonal and is not, or a rotation without a real logarithm."""


class FileFormatError(SodaError):
    """A file that is not a readable SODA adapter."""


class BaseMismatchError(SodaError):
    """An adapter that does not fit the base model at hand."""


class MergeError(SodaError):
    """Adapters that cannot be merged with the chosen method."""


class TrainingError(SodaError):
    """Training data that cannot be used, or a run that diverged."""


# The host, to which a pack's module is a path on the user's disk, shows an error's type with its module.
for _kind in (SodaError, *SodaError.__subclasses__()):
    _kind.__module__ = "soda_core.errors"
