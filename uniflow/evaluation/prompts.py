"""Whether generated images show what their captions say, fact by fact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uniflow.core.distributed import gather_lists
from uniflow.core.pixels import to_unit_range
from uniflow.metrics import FeatureExtractor, LogisticRegression

FIELD = "facts"


class PromptAdherence:
    """For each fact that captions state, the share of images in which a classifier finds it.

    Facts are the field "facts" of a batch: integers (B,) by name, such as the color of the main object, and negative
    where a caption does not state the fact: such images do not count. As in GenEval
    (arXiv 2310.11513) each is judged by itself, by a model that has not seen the generator: here logistic regressions
    that are fitted on real images, and whose own accuracy is reported.

    Args:
        extractor: of the features that the classifiers read.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self._rows: dict[str, list[Tensor]] = {}
        self._facts: dict[str, list[Tensor]] = {}

    def update(self, images: Mapping[str, Tensor], batch: Mapping[str, Any]) -> None:
        """Feed a batch; one without facts is left out.

        Args:
            images: (B, 3, H, W) in [0, 1]: "real", and those that were generated for the same captions by a suffix.
            batch: with the facts of the captions.
        """
        facts = batch.get(FIELD, {})
        for name, values in facts.items():
            self._facts.setdefault(name, []).append(values.cpu())
        for name, pictures in images.items() if facts else ():
            self._rows.setdefault(name, []).append(self.extractor(pictures).cpu())

    def of_real(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of a batch of further real images what `compute` needs: features and facts by name; empty without facts."""
        facts = {f"{FIELD} {name}": values for name, values in batch.get(FIELD, {}).items()}
        return {"pictures": self.extractor(to_unit_range(batch["image"])), **facts} if facts else {}

    def compute(self, held_out: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers, of all processes, which all have to call this; empty without facts.

        Args:
            held_out: what `of_real` gave for real images that are not among the judged ones, (M, ...) each.

        Returns:
            For each fact "prompt_NAME" with the suffix of the images, in [0, 1]; with "_real" the same of real images,
            the classifier's own accuracy; with "_chance" that of images which were generated for other captions, of
            the first suffix. "prompt" with each of these suffixes is the mean over the facts.
        """
        rows = {suffix: torch.cat(gather_lists(parts)) for suffix, parts in self._rows.items()}
        facts = {name: torch.cat(gather_lists(parts)) for name, parts in self._facts.items()}
        if "pictures" not in held_out:
            return {}
        shares: dict[str, dict[str, float]] = {}
        for name, wanted in facts.items():
            known = held_out[f"{FIELD} {name}"]
            classes = int(max(int(known.max()), int(wanted.max()))) + 1
            stated, fitted = wanted >= 0, known >= 0
            if not (stated.any() and fitted.any()):
                continue
            classifier = LogisticRegression(
                held_out["pictures"][fitted], known[fitted], classes, l2=1e-2, iterations=60
            )
            found = {suffix: classifier.logits(own[stated]).argmax(dim=1).cpu() for suffix, own in rows.items()}
            shares[name] = _shares(found, wanted[stated], classes)
        numbers = {f"prompt_{name}{suffix}": share for name, own in shares.items() for suffix, share in own.items()}
        suffixes = next(iter(shares.values()), {})
        means = {f"prompt{suffix}": sum(own[suffix] for own in shares.values()) / len(shares) for suffix in suffixes}
        return numbers | means


def _shares(found: Mapping[str, Tensor], wanted: Tensor, classes: int) -> dict[str, float]:
    """How often what was found is what was wanted, by suffix, with "_real" and "_chance"."""
    shares = {
        "_real" if suffix == "real" else suffix: float((answers == wanted).double().mean())
        for suffix, answers in found.items()
    }
    generated = next((answers for suffix, answers in found.items() if suffix != "real"), None)
    if generated is not None:
        each = [values.bincount(minlength=classes).double() / len(values) for values in (generated, wanted)]
        shares["_chance"] = float(each[0] @ each[1])
    return shares
