"""Everything that can go wrong in the core, as one tree under :class:`MimyriaError`.

A message is one line that says what is wrong, what was expected, what was found and what to do. The command line
prints it after ``error:`` and exits with 1; nothing else in the core catches it.
"""


class MimyriaError(Exception):
    """Base of every error that a user can cause and mend."""


class TrajectoryError(MimyriaError):
    """A trajectory file is unreadable, incomplete or inconsistent."""


class CampaignError(MimyriaError):
    """The campaign file is wrong; the message names file and line."""


class FieldSetError(MimyriaError):
    """A set of field points cannot give the tensors asked for."""


class IncompleteFieldSet(FieldSetError):
    """Field points are missing; the message names them."""


class LabelError(MimyriaError):
    """Labels (APT, PGT) are missing, malformed or not finite."""


class EngineError(MimyriaError):
    """An electronic-structure or MD engine failed or gave an unusable result."""


class ModelError(MimyriaError):
    """A network file does not fit the data it is used on."""


class SpectrumError(MimyriaError):
    """A spectrum cannot be computed from the series given."""


class GroupError(MimyriaError):
    """Groups or relations of a cross-correlation analysis are ill-defined, or do not fit the atoms."""
