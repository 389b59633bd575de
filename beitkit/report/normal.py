"""Is this normal? Sentences about the numbers of a run, with what to do if one of them is off.

Every function takes plain numbers and returns lines, each with a state: "ok" is as it should be, "note" is worth knowing,
"warn" wants action. Limits without a source are our own, named below, and meant to catch obvious problems. Shares and
accuracies are in [0, 1], losses and entropies in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Literal, NamedTuple

from beitkit.errors import few

Level = Literal["ok", "note", "warn"]
Number = int | float
Problem = tuple[str, str, str]
"""Name, finding and advice of something that is wrong."""

# The official log of BEiT-B, 300 epochs on ImageNet-1k with 8192 codes, as its author posted it (unilm issue 383).
OFFICIAL_ACCURACY, OFFICIAL_LOSS, OFFICIAL_VOCABULARY = 0.0496, 6.299, 8192

DATA_BOUND = 0.3
"""Share of the time spent waiting for images from which the data is what limits the speed."""
SPIKE = 10.0
"""A gradient norm this many times the usual one is a spike."""
REFUSED, REFUSED_SHARE = 16, 0.01
"""Steps that a gradient scaler refuses until its scale fits (it begins at 2 ** 16), and the share of all steps after that."""
CONSTANT = 0.9
"""Targets are as good as constant when one token makes up more than this share."""
ONE_POINT = 0.01
"""Difference of two runs' results from which on it counts where nothing is known of its error."""
LEAST_VARIED, LEAST_VARIED_SHARE = 16, 0.1
"""Targets as varied as fewer equally common tokens, or as a smaller share of the vocabulary, teach little."""
STILL = 0.01
"""Share of its first value by which a loss must fall to count as having moved."""
LEARNED = 0.02
"""Nats below a baseline's loss from which a network counts as better than it."""
EXPLAINED = 0.02
"""Share of the pixels' variance from which a network counts as better than the mean patch."""


class Line(NamedTuple):
    """One answer."""

    state: Level
    sentence: str


def pretraining_lines(
    *,
    vocabulary: int,
    loss: Number,
    accuracy: Number,
    token_entropy: Number,
    commonest_share: Number,
    masked_share: Number | None,
) -> list[Line]:
    """Masked-token prediction at its end: the mask, the targets, and loss and accuracy against what guessing reaches.

    `token_entropy` and `commonest_share` describe how often each visual token occurs among the targets: always naming the
    commonest one scores `commonest_share`, and predicting the frequencies costs `token_entropy`. `masked_share` is the share of
    patches that was in fact hidden; None where none was to be.
    """
    if masked_share is not None and masked_share <= 0:
        return [
            Line(
                "warn",
                "Mask empty: not one patch was hidden, so nothing was learned. The smallest block may be larger than the "
                "number of patches to hide; lower `mask.min_block` or raise `mask.ratio`.",
            )
        ]
    return [
        *_mask_lines(masked_share),
        *_target_lines(vocabulary, token_entropy, commonest_share),
        _loss_line(vocabulary, loss, token_entropy),
        *_token_accuracy_lines(vocabulary, accuracy, commonest_share),
    ]


def pixel_lines(*, loss: Number, variance: Number, masked_share: Number | None) -> list[Line]:
    """Masked-pixel regression at its end: the mask, the targets, and the loss against always predicting the mean patch.

    `variance` is the mean variance of the target pixels, which is what that constant prediction costs. `masked_share` is the
    share of patches that was hidden; None where none was to be.
    """
    lines = _mask_lines(masked_share)
    if not variance > 1e-4:
        return [*lines, Line("warn", f"Targets constant: the pixels' variance is {variance:.2g}, so there is nothing to learn.")]
    if not math.isfinite(loss):
        advice = "training has broken down. Lower `lr`, or use `precision='float32'`"
        return [*lines, Line("warn", f"The loss is {loss}: {advice}.")]
    explained = 1 - loss / variance
    level = f"always predicting the mean patch costs the variance, {variance:.3g}"
    if explained < EXPLAINED:
        advice = "train longer; if the loss has been flat for long, try another `lr`"
        return [*lines, Line("warn", f"Loss at chance: {loss:.3g} shows no use of the visible patches yet ({level}); {advice}.")]
    return [*lines, Line("ok", f"Loss {loss:.3g} explains {explained:.0%} of the pixels' variance ({level}).")]


def tokenizer_lines(
    problems: Sequence[Problem], *, vocabulary: int, codes_used: int, perplexity: Number, commonest_share: Number, psnr: Number
) -> list[Line]:
    """A tokenizer at its end: what `tokenizers.health.diagnose` found wrong, and in the words of a pass what it did not.

    `perplexity` is the exponential of the entropy of the codes' frequencies, `psnr` the peak signal-to-noise ratio of the
    reconstructions in decibels.
    """
    lines = [Line("warn", f"{name.capitalize()}: {finding} {advice}") for name, finding, advice in problems]
    named = {name for name, _, _ in problems}
    if "codes dead" not in named:
        lines.append(Line("ok", f"{codes_used:,} of {vocabulary:,} codes are in use ({codes_used / vocabulary:.0%})."))
    if "one token dominates" not in named:
        as_varied = f"as varied as {perplexity:,.0f} equally common ones would be (perplexity {perplexity:,.1f})"
        commonest = f"the commonest makes up {_small_percent(commonest_share)} of all tokens"
        if _are_poor(perplexity, vocabulary):
            lines.append(Line("warn", f"Tokens poor: the codes are only {as_varied}; {commonest}. Train longer."))
        else:
            lines.append(Line("ok", f"The codes are {as_varied}; {commonest}."))
    if "reconstruction poor" not in named:
        lines.append(Line("ok", f"Images decoded from their own tokens reach {psnr:.1f} dB PSNR."))
    return lines


def finetuning_lines(
    *,
    classes: int,
    accuracy: Number,
    commonest_share: Number,
    images: int,
    train_accuracy: Number | None = None,
    unseen: Sequence[str] = (),
) -> list[Line]:
    """Classification at its end: accuracy on `images` held-out images against guessing, and against the training images.

    `commonest_share` is the share of the largest class among the held-out images: what always naming it scores. `unseen` names
    the classes of which not one image was named right.
    """
    guess = max(1 / classes, commonest_share)
    noise = 2 * math.sqrt(guess * (1 - guess) / images)  # two standard errors of a guess on that many images
    against = f"always naming the commonest of {classes:,} classes scores {guess:.1%}"
    if accuracy <= guess + noise:
        advice = "check that the class folders hold what their names say, then lower `lr` or train longer"
        lines = [Line("warn", f"At chance: accuracy {accuracy:.1%} on {images:,} images, and {against}; {advice}.")]
    else:
        margin = 2 * math.sqrt(accuracy * (1 - accuracy) / images)
        lines = [
            Line("ok", f"Accuracy is {accuracy:.1%} on {images:,} images (± {margin:.1%} by their number alone); {against}.")
        ]
    if unseen:
        advice = "give more images of them, show classes equally often (`balanced`), or train longer"
        lines.append(Line("warn", f"Never named right: {few(unseen, 6)}; {advice}."))
    if train_accuracy is None:
        return lines
    gap = train_accuracy - accuracy
    both = f"{train_accuracy:.1%} on the training images, {accuracy:.1%} on the others"
    if gap > 0.4:
        advice = "more labels help most; fewer epochs, stronger augmentation or drop path help too"
        lines.append(Line("warn", f"Overfitting: {both}. The network has learned its images by heart; {advice}."))
    elif gap > 0.15:
        lines.append(Line("note", f"Some overfitting: {both}. With few labels that is usual, and pre-training makes it smaller."))
    else:
        lines.append(Line("ok", f"No overfitting to speak of: {both}."))
    return lines


def comparison_line(measure: str, share: Number, other: str, other_share: Number, images: int | None) -> Line:
    """A result beside that of another run, by the same measure.

    Of shares of `images` named right, a difference counts from two standard errors on (as if the images were not the same); of
    other measures, where `images` is None, from one point on.
    """
    margin = ONE_POINT
    if images is not None:
        margin = 2 * math.sqrt((share * (1 - share) + other_share * (1 - other_share)) / images)
    gain, found = share - other_share, f"{measure} {share:.1%} here, {other_share:.1%} in {other}"
    if gain < -margin:
        advice = "if this is the pre-trained start, it did not pay: pre-train longer, or fine-tune longer or with a lower `lr`"
        return Line("warn", f"Worse than the run it is compared with: {found}; {advice}.")
    if gain <= margin:
        return Line("note", f"No clear difference: {found}. Repeat both with other values of `seed`.")
    return Line("ok", f"Better than the run it is compared with: {found}.")


def unseen_hint(unseen: Sequence[str], *, is_weighed: bool) -> str | None:
    """What to do about classes of which not one pixel was found, although they occur; None where there are none.

    `is_weighed` is whether rare classes count more already, by weights or a dice loss.
    """
    if not unseen:
        return None
    more = "" if is_weighed else ", or make them count more (`loss.class_weights='balanced'`, `loss.dice_weight=1`)"
    return f"Never found: {few(unseen, 6)}. Rare and small classes come last; train longer, or on more images of them{more}."


def segmentation_lines(
    *,
    mean_iou: Number,
    pixel_accuracy: Number,
    commonest_share: Number,
    unseen: str | None,
    train_accuracy: Number | None = None,
) -> list[Line]:
    """Segmentation at its end: pixels named right against always naming the commonest class, and classes that are never found.

    `commonest_share` is the share of the largest class among the counted pixels of the training masks, `unseen` says which
    classes are never found, if there are any (`unseen_hint`).
    """
    against = f"always naming the commonest class names {commonest_share:.1%} of the pixels right"
    found = f"{pixel_accuracy:.1%} of the pixels are named right, mIoU {mean_iou:.1%}"
    if pixel_accuracy <= commonest_share * 1.02:
        advice = "check the masks with an image editor, then train longer or raise `lr`"
        lines = [Line("warn", f"At chance: {found}, and {against}; {advice}.")]
    else:
        lines = [Line("ok", f"{found[0].upper()}{found[1:]}; {against}.")]
    if unseen is not None:
        lines.append(Line("warn", unseen))
    if train_accuracy is not None and train_accuracy - pixel_accuracy > 0.1:
        both = f"{train_accuracy:.1%} on training crops, {pixel_accuracy:.1%} on the validation images"
        lines.append(Line("note", f"Some overfitting: {both}; more images help most, drop path and wider scales help too."))
    return lines


class Scaled(NamedTuple):
    """How a run in float16 went with the scale of its gradients."""

    refused: int
    """Steps that were left out because the scale was too large for them."""
    steps: int
    """All steps."""
    scale: Number
    """The last scale."""


def training_lines(
    *,
    losses: Sequence[Number],
    grad_norms: Sequence[Number],
    data_wait: Number,
    bad_steps: int,
    scaled: Scaled | None = None,
) -> list[Line]:
    """What holds for every training: the course of the loss, spikes, steps that were not finite, and waiting for data.

    `losses` and `grad_norms` are the logged values in order, `data_wait` the share of the time spent waiting for images, and
    `bad_steps` the number of steps left out because loss or gradient was not finite; `scaled` is for runs in float16.
    """
    lines = _course_lines([float(loss) for loss in losses if math.isfinite(loss)])
    if bad_steps:
        advice = "a few are harmless; if they go on, lower `lr` or use `precision='float32'`"
        lines.append(
            Line(
                "warn",
                f"Not finite: {_count(bad_steps, 'step')} left out because the loss or a gradient was NaN or infinite; {advice}.",
            )
        )
    if scaled is not None:
        left_out = f"{scaled.refused:,} of {_count(scaled.steps, 'step')} left out by the gradient scaler"
        share = f"{left_out}, whose scale ended at {scaled.scale:,g}"
        if scaled.refused > REFUSED + REFUSED_SHARE * scaled.steps:
            lines.append(
                Line("warn", f"float16: {share}; use `precision='bfloat16'` where the GPU has it, or `precision='float32'`.")
            )
        else:
            lines.append(Line("ok", f"float16: {share}; a few are usual, while it looks for the largest that fits."))
    lines += _spike_lines([float(norm) for norm in grad_norms if math.isfinite(norm)])
    if data_wait > DATA_BOUND:
        advice = "raise `workers`, or store the images smaller"
        lines.append(Line("warn", f"Data-bound: {data_wait:.0%} of the time went into waiting for images; {advice}."))
    else:
        lines.append(Line("ok", f"{data_wait:.0%} of the time went into waiting for images; the arithmetic sets the pace."))
    return lines


def _mask_lines(masked_share: Number | None) -> list[Line]:
    if masked_share is None:
        found = "it need only recognize what it sees, and in BEiT's ablation learned the poorest features of all variants"
        return [Line("note", f"No patch was hidden (`mask.kind='none'`): {found}.")]
    if masked_share < 0.1 or masked_share > 0.8:
        usual = "BEiT hides about 40%"
        return [
            Line("warn", f"{masked_share:.0%} of the patches were hidden, where {usual}; see `mask.ratio` and `mask.min_block`.")
        ]
    return [Line("ok", f"{masked_share:.0%} of the patches were hidden (BEiT: about 40%).")]


def _target_lines(vocabulary: int, token_entropy: Number, commonest_share: Number) -> list[Line]:
    if commonest_share > CONSTANT or token_entropy < 0.1:
        found = f"one token makes up {commonest_share:.0%} of what is to be predicted"
        return [
            Line("warn", f"Targets constant: {found}, so there is nothing to learn. The tokenizer has collapsed; train it anew.")
        ]
    varied = f"as varied as {math.exp(token_entropy):,.0f} equally common tokens out of {vocabulary:,}"
    if _are_poor(math.exp(token_entropy), vocabulary):
        found = f"they are only {varied}, the commonest makes up {commonest_share:.0%}"
        return [Line("warn", f"Targets poor: {found}, so there is little to predict. Train the tokenizer longer.")]
    if commonest_share > 0.5:
        found = f"one token makes up {commonest_share:.0%}, perhaps a plain background"
        return [Line("note", f"The targets are {varied}; {found}.")]
    return [Line("ok", f"The targets are {varied}; the commonest makes up {commonest_share:.1%}.")]


def _are_poor(perplexity: Number, vocabulary: int) -> bool:
    return perplexity < max(min(LEAST_VARIED, vocabulary / 2), LEAST_VARIED_SHARE * vocabulary)


def _loss_line(vocabulary: int, loss: Number, token_entropy: Number) -> Line:
    if not math.isfinite(loss):
        return Line("warn", f"The loss is {loss}: training has broken down. Lower `lr`, or use `precision='float32'`.")
    chance = math.log(vocabulary)
    levels = (
        f"guessing evenly costs ln {vocabulary} = {chance:.2f}, knowing only how common each token is costs {token_entropy:.2f}"
    )
    if loss > chance + LEARNED:
        return Line("warn", f"Loss {loss:.2f} is worse than guessing: {levels}. Lower `lr`, or lengthen the warm-up.")
    if loss > token_entropy - LEARNED:
        advice = "train longer; if the loss has been flat for long, try another `lr`"
        return Line("warn", f"Loss at chance: {loss:.2f} shows no use of the visible patches yet ({levels}); {advice}.")
    return Line("ok", f"Loss {loss:.2f} is {token_entropy - loss:.2f} below what needs no image at all ({levels}).")


def _token_accuracy_lines(vocabulary: int, accuracy: Number, commonest_share: Number) -> list[Line]:
    chance = 1 / vocabulary
    levels = (
        f"guessing evenly scores {_small_percent(chance)}, always naming the commonest token {_small_percent(commonest_share)}"
    )
    if accuracy <= commonest_share * 1.05:
        advice = "train longer" if accuracy >= chance else "something is wrong with the targets or the learning rate"
        lines = [Line("warn", f"Token accuracy {_small_percent(accuracy)} is no better than guessing ({levels}); {advice}.")]
    else:
        lines = [
            Line(
                "ok",
                f"Token accuracy {_small_percent(accuracy)} is {accuracy / commonest_share:.1f} times the best guess ({levels}).",
            )
        ]
    if vocabulary >= 1024 and accuracy < 0.2:
        official = f"{_small_percent(OFFICIAL_ACCURACY)} (loss {OFFICIAL_LOSS:.2f}) with {OFFICIAL_VOCABULARY:,} tokens"
        lines.append(Line("note", f"Low figures are normal here: BEiT-B after 300 epochs on ImageNet-1k ended at {official}."))
    return lines


def _course_lines(losses: Sequence[float]) -> list[Line]:
    if len(losses) < 10:
        logged = f"Only {_count(len(losses), 'finite loss', 'finite losses')} logged"
        return [Line("note", f"{logged}, too few to judge their course; a smaller `loop.log_every` logs more.")]
    tenth = max(1, len(losses) // 10)
    first, before, last = fmean(losses[:tenth]), fmean(losses[-2 * tenth : -tenth]), fmean(losses[-tenth:])
    course = f"the loss went from {first:.3g} to {last:.3g}"
    if last > first:
        return [Line("warn", f"Diverged: {course}. Lower `lr`, or lengthen the warm-up.")]
    if first - last < STILL * abs(first):
        return [Line("note", f"The loss did not move: {course}. Unless this run went on from a finished one, raise `lr`.")]
    if before - last > 0.03 * (first - last):
        return [Line("note", f"Still learning at the end: {course}, and it was still falling. A longer run would go on.")]
    return [Line("ok", f"Training settled: {course} and was nearly flat at the end.")]


def _spike_lines(norms: Sequence[float]) -> list[Line]:
    if len(norms) < 10:
        return []
    usual = median(norms)
    later = norms[len(norms) // 10 :]  # the first steps of a warm-up are not spikes
    spikes = [norm for norm in later if norm > SPIKE * usual]
    if spikes:
        found = (
            f"{_count(len(spikes), 'logged step')} above {SPIKE:.0f} times the usual {usual:.2g}, the highest {max(spikes):.2g}"
        )
        return [Line("note", f"Gradient spikes: {found}. Clipping (`optim.clip`) tames them; a lower `lr` avoids them.")]
    return [Line("ok", f"Gradients are steady: norm {usual:.2g}, at most {max(later):.2g}.")]


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _small_percent(share: Number) -> str:
    return f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"
