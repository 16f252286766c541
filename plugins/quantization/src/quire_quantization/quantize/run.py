"""A run of `quire quantize`, stage by stage: loss before, checkpoint, loss after, report."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

from quire.api.errors import QuireError
from quire_quantization.quantize import gptqmodel_run
from quire_quantization.quantize.compressed import check_space, make_plan, write_compressed
from quire_quantization.quantize.evaluation import measure_loss
from quire_quantization.quantize.job import Job, finished_report, open_job
from quire_quantization.quantize.report import make_report, weight_bytes
from quire_quantization.quantize.samples import SampleSets, digest, load_samples
from quire_quantization.quantize.settings import QuantizeSettings
from quire_quantization.quantize.source import HEAD, SourceModel, check_linears, open_source

logger = logging.getLogger("quire.quantize")


@dataclass(slots=True, frozen=True)
class Writer:
    """How a checkpoint is written into a folder.

    Attributes:
        check: raises CapacityError where the folder's disk is too small.
        write: writes it, or what is missing of it; the second folder is for what is of no use afterwards.
    """

    check: Callable[[Path], None]
    write: Callable[[Path, Path], None]


def quantize(settings: QuantizeSettings) -> Mapping[str, object]:
    """Do what is not done yet, and return the report.

    Raises:
        QuireError: whatever cannot be done, as far as possible before anything is computed.
    """
    from quire import find_model

    versions = _versions(settings)
    source = open_source(find_model(settings.model, settings.revision))
    arguments: dict[str, object] = {
        **source.fingerprint(),
        **settings.arguments(),
        "calibration": digest(settings.calibration),
        "evaluation": digest(settings.evaluation),
        "versions": versions,
    }
    report = None if settings.is_overwriting else finished_report(settings.out, arguments)
    if report is not None and (report["loss_after"] is not None or not settings.is_evaluated):
        return report
    samples = load_samples(settings, source)
    writer = _writer(settings, source, samples)
    with open_job(settings.out, arguments, is_overwriting=settings.is_overwriting) as job:
        if not job.is_quantized:
            writer.check(job.folder)
        before = _loss(job, "loss_before", source.folder, samples, settings)
        if not job.is_quantized:
            job.once("quantized", lambda: writer.write(job.folder, job.work))
            job.publish()
        after = _loss(job, "loss_after", job.folder, samples, settings)
        losses = None if before is None or after is None else (before, after)
        sizes = (source.num_bytes, weight_bytes(job.folder))
        report = make_report(losses, sizes, versions)
        job.finish(report)
    return report


def _versions(settings: QuantizeSettings) -> dict[str, str]:
    versions = {"quire-quantization": importlib.metadata.version("quire-quantization")}
    if settings.traits.needs_calibration:
        versions["gptqmodel"] = gptqmodel_run.require_gptqmodel()
    return versions


def _writer(settings: QuantizeSettings, source: SourceModel, samples: SampleSets) -> Writer:
    """What writes the checkpoint; whatever the method cannot quantize is refused here."""
    if settings.traits.needs_calibration:
        modules = [module for module in source.linears() if module != HEAD]
        check_linears(source, modules, settings.group_size, 1)
        return Writer(
            partial(gptqmodel_run.check_space, source),
            partial(gptqmodel_run.run_gptqmodel, source, samples.calibration, settings),
        )
    plan = make_plan(source, settings)
    return Writer(
        partial(check_space, plan), lambda folder, _: write_compressed(source, plan, settings, folder)
    )


def _loss(
    job: Job, stage: str, model: Path, samples: SampleSets, settings: QuantizeSettings
) -> Mapping[str, object] | None:
    if not settings.is_evaluated:
        return None
    title = "Loss before" if stage == "loss_before" else "Loss after"

    def measure() -> object:
        loss = measure_loss(model, samples.evaluation, settings.device, title)
        return {**asdict(loss), "perplexity": loss.perplexity}

    try:
        return cast("Mapping[str, object]", job.once(stage, measure))
    except QuireError:
        if job.is_quantized:
            logger.error(
                "the checkpoint in %s is complete, only its loss could not be measured; repeat the command to try "
                "again, or with --no-evaluate to leave it at that",
                job.folder,
            )
        raise
