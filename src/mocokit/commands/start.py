"""``pretrain --weights``: the trained encoder that a run goes on from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mocokit.console import say
from mocokit.deploy.encoder_file import read_encoder
from mocokit.deploy.feature_file import encoder_fingerprint
from mocokit.deploy.loading import load
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.weights import fit_weights
from mocokit.rundir import RunDirectory


@dataclass(frozen=True)
class Start:
    """The trained encoder that a run goes on from, and its ``fingerprint`` as it was given."""

    encoder: Encoder
    fingerprint: str

    @classmethod
    def of(
        cls, given: Mapping[str, Any], recipe: Mapping[str, Any], run: RunDirectory, overwrite: bool
    ) -> "Start | None":
        """What ``--weights`` names: where ``run`` goes on, its copy of it; None without.

        Raises:
            UserError: there is no such encoder, or ``run`` went on from another.
        """
        weights = given.get("weights")
        saved = None if overwrite or run.is_empty() or not run.config.exists() else run.read_config().config
        if saved is not None and saved.weights is not None and weights is None:
            raise UserError(f"{run.path} holds a run with --weights {saved.weights}; give them, or another --out")
        if weights is None:
            return None
        fingerprint = None if saved is None else run.read_fingerprint("weights")
        if saved is not None and weights == saved.weights and fingerprint and run.initial.exists():
            return cls(read_encoder(run.initial), fingerprint)
        encoder = load(weights, backbone=given.get("backbone", recipe.get("backbone")))
        start = cls(encoder, encoder_fingerprint(encoder))
        if saved is not None and start.fingerprint != fingerprint:
            raise UserError(
                f"{run.path} holds a run with other weights (--weights {saved.weights}); give another --out, "
                f"or --overwrite to replace it"
            )
        return start

    def adapted(self, spec: EncoderSpec) -> Encoder:
        """The same weights in an encoder of ``spec``, of another image size or number of channels; told if so."""
        encoder = Encoder.create(spec)
        for note in fit_weights(encoder.backbone, self.encoder.backbone.state_dict(), spec.backbone):
            say(f"{self.encoder.name}: {note}")
        encoder.name = "the given weights"
        return encoder.eval()
