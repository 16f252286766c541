"""Every error that Quire raises on purpose, with the value, the limit and the remedy in its text."""

from __future__ import annotations


class QuireError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(QuireError, ValueError):
    """A setting is out of bounds, contradictory or unknown."""


class SamplingParamsError(QuireError, ValueError):
    """A sampling parameter is out of bounds or contradictory."""


class UnknownSamplingParamError(SamplingParamsError, TypeError):
    """A keyword of SamplingParams that nothing knows; a TypeError, as for any unknown keyword."""


class PromptError(QuireError, ValueError):
    """A prompt is empty, too long, malformed, or holds token ids outside the model's logits."""


class CapacityError(QuireError, ValueError):
    """Something can never fit: a request in the KV cache, or a KV cache in memory."""


class ModelNotFoundError(QuireError, FileNotFoundError):
    """No folder, resolver or hub answers to the model's name."""


class UnsupportedModelError(QuireError, ValueError):
    """The architecture, or a trait of its configuration, is served by no registered model."""


class CheckpointError(QuireError, ValueError):
    """A checkpoint is truncated, corrupt, incomplete, of a wrong shape, or of a refused format."""


class QuantizationError(QuireError, ValueError):
    """A quantization config is contradictory or unsupported, or tensors are not what it says."""


class TokenizerError(QuireError, ValueError):
    """A tokenizer or chat template is missing or malformed, or was needed and not loaded."""


class ShapeError(QuireError, ValueError):
    """Tensors given to an op or a layer do not agree."""


class NumericalError(QuireError, ArithmeticError):
    """A request's logits were not finite; the request is failed, its neighbours go on."""


class PluginError(QuireError, RuntimeError):
    """A plugin cannot be found, imported, registered, or collides with another one."""


class ExtensionError(PluginError):
    """A plugin's code failed while it served a request; that request is failed, its neighbours go on.

    Attributes:
        plugin: whose code, for clients, who are told nothing else; "" where it is not known.
    """

    def __init__(self, message: str, plugin: str = "") -> None:
        super().__init__(message)
        self.plugin = plugin


class DeviceError(QuireError, RuntimeError):
    """A device does not exist here or does not support what was asked of it."""


class CaptureError(QuireError, RuntimeError):
    """A model does something that a step capture cannot replay; its steps are run call by call."""


class EngineClosedError(QuireError, RuntimeError):
    """The engine was closed; build a new one."""


class StepError(QuireError, RuntimeError):
    """The executor failed while running a step; the step's requests are failed with this error."""


class KVCacheInvariantError(QuireError, RuntimeError):
    """The block manager's books do not agree: a defect of the engine, never of the input."""
