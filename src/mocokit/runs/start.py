"""``pretrain --weights``: the trained encoder that a run goes on from."""

from dataclasses import dataclass

from mocokit.console import say
from mocokit.deploy.encoder_file import encoder_fingerprint, read_encoder
from mocokit.deploy.loading import load
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder, EncoderSpec
from mocokit.model.weights import fit_weights
from mocokit.rundir import RunDirectory
from mocokit.runs.request import Request

TIMM_BACKBONE = {"cpu": "tf_efficientnet_lite0", "cuda": "resnet50"}  # for --weights timm, where none is said


@dataclass(frozen=True)
class Start:
    """The trained encoder that a run goes on from, and its ``fingerprint`` as it was given."""

    encoder: Encoder
    fingerprint: str

    @classmethod
    def of(cls, request: Request, run: RunDirectory | None) -> "Start | None":
        """What ``--weights`` names: where a ``run`` goes on, its copy of it; None without. ``timm`` alone is a network
        that suits the device.

        Raises:
            UserError: there is no such encoder, or ``run`` went on from another.
        """
        weights, backbone = request.said.get("weights"), request.said.get("backbone")
        before = fingerprint = None
        if run is not None:
            before, fingerprint = run.read_config().config.weights, run.read_fingerprint("weights")
            holds = f"--weights {before}" if before else "no --weights"
            refusal = UserError(f"{run.path} holds a run with {holds}; give the same, or another --out")
            if (before is None) != (weights is None):
                raise refusal
        if weights is None:
            return None
        if run is not None and weights == before and fingerprint and run.initial.exists():
            return cls(read_encoder(run.initial), fingerprint)
        if weights == "timm" and backbone is None:
            backbone = TIMM_BACKBONE.get(request.device, TIMM_BACKBONE["cuda"])
        encoder = load(weights, backbone=backbone)
        start = cls(encoder, encoder_fingerprint(encoder))
        if run is not None and start.fingerprint != fingerprint:
            raise refusal
        return start

    def adapted(self, spec: EncoderSpec) -> Encoder:
        """The same weights in an encoder of ``spec``, of another image size or number of channels; told if so."""
        encoder = Encoder.create(spec)
        for note in fit_weights(encoder.backbone, self.encoder.backbone.state_dict(), spec.backbone):
            say(f"{self.encoder.name}: {note}")
        encoder.name = "the given weights"
        return encoder.eval()
