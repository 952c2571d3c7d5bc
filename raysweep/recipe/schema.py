"""The sections of a recipe: data, model, train, asha, resources, features, final.

Defaults, limits and meaning of every field stand here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .values import (
    Count,
    DatasetName,
    Depth,
    Frozen,
    Normalize,
    Number,
    Part,
    Positive,
    Precision,
    Seed,
    Share,
    Units,
    axis,
    listed,
    stored_type,
)


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] >= values[1]:
        raise ValueError("must be [low, high] with low below high")
    return values


Optimizer = Literal["adam", "adamw", "sgd", "nadam", "radam", "rmsprop", "lion", "lamb", "adan"]
"""lion, lamb and adan are timm's, the others PyTorch's."""
Decay = Annotated[float, Field(strict=True, gt=0, le=1)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]


Augmentations = Literal["hflip", "crop", "color", "trivial", "randaugment", "erase"]
CropShare = Annotated[float, Field(strict=True, gt=0, le=1)]


class Data(Frozen):
    """The images and how they are split."""

    dataset: DatasetName = "digits"
    """digits, cifar10, cifar100, imagefolder, fake, torchvision:<Name>, or hf:<folder or name> of Hugging Face."""
    root: str | None = None
    """Folder of the data; the user's cache when null."""
    labels: str | None = None
    """Of imagefolder: a CSV or Parquet table with the columns file (below root, else below the table's folder) and
    label, and if there are any split and group, instead of class folders. Of hf: the column of the labels."""
    group: str | None = None
    """What images have in common that are not to part over splits, such as a patient or a video: a column of the
    table, or a regular expression whose first group it is in a file's name. The table's column group when null."""
    image_size: Annotated[int, Field(strict=True, ge=8, le=1024)] | None = None
    """Side in pixels that images are resized to, in batches on the device; their own size when null."""
    normalize: Normalize = "backbone"
    """Whose channel statistics images are normalised with, or the statistics themselves."""
    augment: Annotated[tuple[Augmentations, ...], BeforeValidator(listed)] = ()
    """Random changes of training images, at the network's input size, in the order crop (random resized crop), hflip,
    color (jitter), trivial (TrivialAugmentWide), randaugment, erase. Horizontal flips alone have two views, so that
    features stay cacheable; with any other the prefix is computed anew in every epoch, unless `views` is set."""
    crop_scale: Annotated[tuple[CropShare, CropShare], AfterValidator(_ascending)] = (0.08, 1.0)
    """Of crop: the least and the largest share of an image's area."""
    views: Count | None = None
    """How many fixed random views of each image there are, from which each epoch draws; they are stored where that
    saves time and there is room. Without end when null. Of no effect without random augmentations."""
    val_fraction: Part = 0.2
    """Share of the training images held out for validation; ignored where the data has its own val split."""
    test_fraction: Part = 0.2
    """Share of all images held out for test, before validation; ignored where the data has its own test split."""
    split_seed: Seed = 45
    limit: Annotated[int, Field(strict=True, ge=2)] | None = None
    """At most so many training images, stratified by class; val and test shrink in proportion."""
    imbalance: Annotated[float, Field(strict=True, ge=1)] | None = None
    """Thin out the training images so that the last class has so many times fewer than the first, exponentially in
    between (Cui et al. 2019, arXiv:1901.05555); to study unequal classes on data of equal ones. null takes them all."""
    value_range: Annotated[tuple[Number, Number], AfterValidator(_ascending)] | None = None
    """Of images with more than 8 bits: the values that become black and white; the lowest and the highest of all
    images when null."""
    drop_duplicates: Annotated[bool, Field(strict=True)] = False
    """Leave out images that are pixel for pixel copies of another; of test's and train's the training image goes."""


class Head(Frozen):
    """The classifier. Its kind alone may stand for it: `head: keep`."""

    kind: Literal["linear", "mlp", "keep", "stacked"] = "linear"
    """linear: a new layer in the place of the pretrained classifier; mlp: several new layers there;
    keep: the pretrained classifier itself, whose first outputs are the classes; stacked: a new linear
    layer on the softmax of the pretrained classifier."""
    sizes: Annotated[tuple[Units, ...], BeforeValidator(axis)] = (256,)
    """Of mlp alone, like the fields below: outputs of each hidden layer."""
    activation: Literal["relu", "none"] = "relu"
    """Between layers."""
    dropout: Share = 0.0
    """Before the first layer."""
    hidden_dropout: Share = 0.0
    """Between layers, after the activation."""

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fields_of_mlp(self) -> Head:
        others = sorted(self.model_fields_set - {"kind"})
        if self.kind != "mlp" and others:
            raise ValueError(
                f"only kind: mlp has {' and '.join(others)}; for {self.kind} write model.head={{kind: {self.kind}}}"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_applies(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return serialize(self) if self.kind == "mlp" else {"kind": self.kind}

    @property
    def label(self) -> str:
        """The head as a table prints it: its kind, and what sets one mlp apart from another."""
        if self.kind != "mlp":
            return self.kind
        changed = [
            f"{name}={getattr(self, name)}"
            for name in ("activation", "dropout", "hidden_dropout")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        return " ".join([self.kind, "-".join(map(str, self.sizes)), *changed])


class Model(Frozen):
    """The network's weights, classifier and treatment of batch normalisation."""

    weights: str = "pretrained"
    """pretrained (the library's default ones), none, the name of others that the library has
    (IMAGENET1K_V1 of torchvision, a tag such as a1_in1k of timm), or a .pth or .safetensors file."""
    head: Head = Head()
    batch_norm: Literal["frozen", "recalibrated", "training"] = "frozen"
    """Statistics of frozen batch-norm layers: the pretrained ones, those of the training images
    (estimated once, then frozen), or each batch's own as in `model.train()`."""


def is_weights_file(weights: str) -> bool:
    """Whether `model.weights` says a file: with a folder or a suffix, which no name has."""
    return "/" in weights or "." in weights


class Phase(Frozen):
    """One of several trainings in a row, each at its own depth; what is null is as the trial has it.

    A linear probe before fine-tuning (Kumar et al. 2022, arXiv:2202.10054) and gradual
    unfreezing (Howard and Ruder 2018, arXiv:1801.06146) are phases.
    """

    depth: Depth | None = None
    epochs: Count | None = None
    lr: Positive | None = None
    optimizer: Optimizer | None = None
    schedule: Literal["constant", "cosine", "step"] | None = None
    weight_decay: NonNegative | None = None
    batch_size: Count | None = None
    warmup_epochs: NonNegative | None = None
    layer_decay: Decay | None = None


def _compile(value: Any) -> Any:
    if not isinstance(value, bool) and value != "reduce-overhead":
        raise ValueError("must be true, false or reduce-overhead")
    return value


Compile = Annotated[bool | Literal["reduce-overhead"], BeforeValidator(_compile)]


class Train(Frozen):
    """How one configuration is trained."""

    epochs: Count = 10
    batch_size: Count = 64
    """Images in an optimizer step, over all workers together."""
    accumulate_steps: Count = 1
    """Into how many parts a batch is divided, one after the other; their gradients are summed, so that the step is
    the whole batch's and takes less memory. Batch norm in training mode sees each part by itself."""
    eval_batch_size: Count | None = None
    """Images in a forward pass of evaluation; the training batch size, at least 128, when null."""
    optimizer: Optimizer = "adam"
    weight_decay: NonNegative = 0.0
    decay_norms: bool = True
    """Whether weight decay applies to norms and biases too: to tensors of at most one axis."""
    momentum: Share = 0.9
    """Of sgd alone."""
    nesterov: bool = False
    """Nesterov's momentum; of sgd alone."""
    layer_decay: Decay = 1.0
    """The learning rate of each layer is that of the next one times this; lr is the last layer's (Clark et al. 2020,
    arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Layers are what depth counts, norms among them."""
    warmup_epochs: NonNegative = 0.0
    """The learning rate rises in equal steps, one an optimizer step, to what the schedule says; in each phase anew."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: Count = 10
    """Epochs between decays of the step schedule."""
    step_gamma: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.1
    class_weights: Literal["none", "balanced", "effective"] = "none"
    """Weights of the classes in the training loss. balanced: inversely proportional to their images; effective: to
    their effective number of images, (1 - 0.999 ** images) / (1 - 0.999) (Cui et al. 2019, arXiv:1901.05555). Either
    way their mean over the training images is 1, so that learning rates mean the same."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """Order of the training images in an epoch. shuffle: each once. balanced: as many, drawn with replacement, each
    class as likely as any other."""
    label_smoothing: Share = 0.0
    mixup: NonNegative = 0.0
    """Alpha of mixup (Zhang et al. 2018, arXiv:1710.09412); 0 mixes nothing. Images are mixed before the network, so
    that its frozen prefix is computed anew in every step."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix (Yun et al. 2019, arXiv:1905.04899); with mixup too, each step draws one of the two."""
    ema: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, at most; it rises towards that, as 1 - (1 + steps) ** (-2/3), so that
    short trainings are averaged too. The averages are measured, handed to the next phase and exported."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; not clipped when null."""
    precision: Precision = "float32"
    """Arithmetic of the trainable suffix; that of the frozen prefix is `features.precision`. Weights stay float32; with
    float16 the loss is scaled so that gradients do not vanish."""
    compile: Compile = False
    """Compile the trainable suffix (torch.compile); pays where a trial is long. reduce-overhead also records its steps
    as CUDA graphs, which pays where a GPU has less to do than the CPU that feeds it."""
    patience: Count | None = None
    """Stop after so many epochs without a lower validation loss; never when null."""
    keep: Literal["last", "best_loss"] = "last"
    """Which epoch's validation accuracy a trial counts with, and how long the final fit lasts."""
    train_accuracy_on: Literal["sample", "all"] = "sample"
    """Train accuracy on a fixed sample of validation's size, or on every training image."""
    validate_every_steps: Count | None = None
    """Measure on validation every so many optimizer steps too; at the end of each epoch alone when null."""
    checkpoint_every_minutes: Positive = 10.0
    """A trial saves its state after every epoch, and within long ones every so many minutes."""
    phases: tuple[Phase, ...] = ()
    """Trainings in a row, the optimizer fresh in each; one as the trial says when empty."""

    @property
    def mixes_images(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


COMPARED_WITHIN = ("backbone", "depth", "seed")
PLAIN_DEFAULTS = (None, COMPARED_WITHIN, list(COMPARED_WITHIN))
"""Values of `compare_within` that ask for nothing in particular."""


class Asha(Frozen):
    """Early stopping of hopeless trials (Li et al. 2020, arXiv:1810.05934)."""

    grace_epochs: Count = 3
    """No trial is stopped before it has so many epochs."""
    reduction_factor: Annotated[float, Field(strict=True, ge=1.1, le=1000)] = 2
    guard: Positive | None = 3.0
    """Learning rates that are equal in everything else are compared image by image, over the seeds that
    both have; one is dropped, with all its seeds, if it is behind by more than the tolerance and so many
    standard errors at a rung, or by one standard error at its last epoch. null is plain ASHA."""
    compare_within: Annotated[tuple[str, ...], BeforeValidator(listed)] = COMPARED_WITHIN
    """Of plain ASHA: trials compete only with those equal in these axes; [] is the whole grid. With `seed`
    among them every seed is a whole replicate of the comparison, and none is dropped for being unlucky.
    Any other list than the default makes `guard` null."""

    @model_validator(mode="before")
    @classmethod
    def _within_means_plain(cls, value: Any) -> Any:
        """Whoever says what competes with what asks for plain ASHA."""
        if isinstance(value, dict) and "guard" not in value and value.get("compare_within") not in PLAIN_DEFAULTS:
            return value | {"guard": None}
        return value

    @model_validator(mode="after")
    def _within_goes_with_plain(self) -> Asha:
        if self.guard is not None and self.compare_within != COMPARED_WITHIN:
            raise ValueError(
                f"compare_within={list(self.compare_within)} is of plain ASHA; set asha.guard=null or leave guard out"
            )
        return self


def _gpus(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < math.inf):
        raise ValueError("must be 'auto' or a number greater than or equal to 0")
    return value


class Resources(Frozen):
    """What one trial occupies."""

    workers_per_trial: Count = 1
    """1 trains in a warm process of its own; more is distributed data parallel."""
    cpus_per_worker: Count = 1
    gpus_per_worker: Annotated[Literal["auto"] | float, BeforeValidator(_gpus)] = "auto"
    """auto: one where the cluster has GPUs, else none. A fraction lets small trials share a GPU."""
    max_failures: Annotated[int, Field(strict=True, ge=0)] = 3
    """How often a trial goes on from its checkpoint after its process or node was lost."""
    max_concurrent: Count | None = None
    """At most so many trials at a time; as many as fit when null."""


def _cache(value: Any) -> Any:
    return {True: "always", False: "never"}.get(value, value) if isinstance(value, bool) else value


class Features(Frozen):
    """Where and how outputs of the frozen prefix are kept."""

    cache: Annotated[Literal["auto", "always", "never"], BeforeValidator(_cache)] = "auto"
    """auto stores a cut where that saves time and there is room."""
    precision: Precision = "float32"
    """Arithmetic of the frozen prefix, whether its outputs are stored or computed each time."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What features are stored as; the 16-bit types halve the size and round them. As they are computed when null."""
    dir: str | None = None
    """Folder of the features, on a cluster a shared one; each node's own cache when null."""
    budget_gb: Annotated[float, Field(strict=True, gt=0, le=1e9)] | None = None
    """Size that all features together may take; half of what the disk has free when null."""
    verify: Literal["sampled", "full"] = "sampled"
    """How much of stored features is read before they are used again: their size and evenly spaced blocks, or all."""

    @property
    def stored_as(self) -> str:
        """The type that features are stored in."""
        return stored_type(self.dtype, self.precision)


class Final(Frozen):
    """Configurations refitted on train + val and measured once on test; all are chosen on validation before."""

    enabled: bool = True
    of: Literal["recommended", "best", "each-network", "all"] = "recommended"
    """Which: the recommended one, the one with the highest score, the best depth of each network (and of each
    value of its further axes), or every depth that was compared."""
    workers: Count | None = None
    """Workers of the refit; one for each GPU, else for each core up to 8, when null."""
