"""The network of a run and what makes it learn: gradients, updates, averaged weights."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nima_training.config import TrainConfig
from nima_training.data.dataset import normalise_on_device
from nima_training.distribution import probabilities
from nima_training.ema import EMA
from nima_training.losses import emd
from nima_training.models import WEIGHTS_NONE, create_model, head_module, pruned_widths
from nima_training.run_dir import TrainingError


class Learner:
    """The model with its optimiser, in one phase: the head alone or the whole network.

    ``model`` is the plain network, which keeps its identity and its state names through all phases.

    Raises:
        TrainingError: the network does not take images of the configured size.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, saved: dict[str, Any] | None = None
    ) -> None:
        """Begin with ``config.weights``, or go on with the weights of a ``saved`` :meth:`state`."""
        self.config, self.accelerator = config, accelerator
        torch.manual_seed(config.seed)
        if saved is None:
            self.model = create_model(config.backbone, config.weights, config.dropout)
        else:  # those it began with may be gone
            widths = pruned_widths(config.backbone, saved["model"])
            self.model = create_model(config.backbone, WEIGHTS_NONE, config.dropout, widths)
        self._try_size()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: Any = None
        """The model as accelerate and torch.compile wrap it."""
        self.frozen: bool | None = None
        """Whether only the head learns; None before the first phase."""
        self.raw_optimiser: torch.optim.AdamW | None = None
        self.ema = EMA(self.model, config.ema_decay) if config.ema_decay else None
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            if self.ema is not None:
                self.ema.load(*saved["ema"])

    def _try_size(self) -> None:
        size = self.config.preprocessing.crop_size
        try:
            with torch.no_grad():
                self.model.eval()(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            raise TrainingError(
                f"{self.config.backbone} does not take images of {size} x {size} pixels: raise "
                f"crop_size and resize_size of [preprocessing] ({str(error).splitlines()[0]})"
            ) from error

    def start_phase(self, frozen: bool, saved: dict[str, Any] | None) -> None:
        """Prepare model and optimiser for the head alone (``frozen``) or for the whole network.

        The moments of Adam go on: ``saved``'s (as :meth:`state` has them) or the phase's before.
        Where the backbone thaws they are the head's; its own parameters begin with none.
        """
        config = self.config
        moments = self.raw_optimiser.state_dict() if self.raw_optimiser is not None else None
        if saved is not None:
            moments = saved["optimiser"]
        head = list(head_module(self.model, config.backbone).parameters())
        own = {id(p) for p in head}
        body = [p for p in self.model.parameters() if id(p) not in own]
        for parameter in body:
            parameter.requires_grad_(not frozen)
        # The head first: its parameters have the same numbers in the states of both phases.
        groups: list[dict[str, Any]] = [{"params": head, "base_lr": config.head_lr}]
        if not frozen:
            groups.append({"params": body, "base_lr": config.backbone_lr})
        optimiser = torch.optim.AdamW(groups, lr=config.head_lr, weight_decay=config.weight_decay)
        if self.frozen is not None:
            # Inside torch.compile's and DDP's wrappers is self.model itself: only the cast of its
            # forward is to be taken off.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
        self.network = self.accelerator.prepare_model(self.model)
        if self.ema is not None:
            device = self.accelerator.device
            self.ema.state = {name: value.to(device) for name, value in self.ema.state.items()}
        if config.compile:
            self.network = torch.compile(self.network)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        if moments is not None:
            optimiser.load_state_dict({**optimiser.state_dict(), "state": moments["state"]})
        if saved is not None and saved["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.raw_optimiser, self.frozen = optimiser, frozen

    def set_mode(self) -> None:
        """Train mode, but for what is frozen: dropout and statistics of the backbone, or these."""
        self.network.train()
        if self.frozen:
            self.model.eval()
            head_module(self.model, self.config.backbone).train()
        if self.config.norm_statistics == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    # ---- one update ------------------------------------------------------------------------

    def backward(self, batch: dict[str, Any], last: bool) -> Tensor:
        """Forward and backward of one micro-batch; the gradients stay in the parameters.

        Args:
            batch: of :func:`nima_training.data.dataset.collate`.
            last: the update follows: DDP then averages the gradients over the processes.

        Returns:
            The loss of each readable photo, FP32 ``[B]`` without a graph; ``B`` may be 0.

        Raises:
            TrainingError: a batch norm cannot take statistics of the one photo it sees.
        """
        config, device = self.config, self.accelerator.device
        with nullcontext() if last else self.accelerator.no_sync(self.network):
            if "pixels" not in batch:
                self._backward_of_nothing()
                return torch.empty(0)
            pixels = batch["pixels"].to(device, non_blocking=True)
            target = batch["targets"].to(device, non_blocking=True)
            with self.accelerator.autocast():
                logits = self._forward(normalise_on_device(pixels, config.preprocessing))
            losses = emd(probabilities(logits), target, config.emd_r)
            # Each photo weighs the same, however many of its micro-batch are readable.
            share = len(losses) / config.batch_size
            self.accelerator.backward(losses.mean() * share / config.accumulate)
        return losses.detach()

    def _forward(self, x: Tensor) -> Tensor:
        try:
            logits: Tensor = self.network(x)
        except ValueError as error:  # of a batch norm whose maps are one pixel
            if len(x) > 1:
                raise
            raise TrainingError(
                f"one photo of {x.shape[-1]} x {x.shape[-1]} pixels is too little for the "
                f"statistics of {self.config.backbone}'s batch norms: set norm_statistics = "
                "'frozen', a larger batch_size or a larger input"
            ) from error
        return logits

    def _backward_of_nothing(self) -> None:
        """Gradients of zero, through the network: DDP waits for those of every process."""
        size = self.config.preprocessing.crop_size
        self.network.eval()  # the running statistics are those of photos
        with self.accelerator.autocast():
            logits = self.network(torch.zeros(1, 3, size, size, device=self.accelerator.device))
        self.accelerator.backward(logits.float().sum() * 0)
        self.set_mode()

    def update(self, factor: float, photos: int) -> None:
        """One optimiser step.

        Args:
            factor: of both learning rates.
            photos: readable ones behind the gradients, of all processes; without any, no step.

        Raises:
            TrainingError: a gradient is not finite; the weights are as before.
        """
        config, optimiser = self.config, self.raw_optimiser
        assert optimiser is not None
        full = config.batch_size * config.accumulate * self.accelerator.num_processes
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if photos == 0:
            self.optimiser.zero_grad()
            return
        if photos != full:
            for parameter in parameters:
                parameter.grad.mul_(full / photos)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * factor
        norm = self.accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf)
        # A loss scale that is too large for once is lowered by its scaler, which skips the step.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise TrainingError(
                "the gradients are not finite: lower the learning rates, or set clip_norm"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)

    # ---- state -----------------------------------------------------------------------------

    def averaged(self) -> dict[str, Tensor]:
        """The weights that are judged and published: averaged ones, if the run averages."""
        return self.ema.state if self.ema is not None else self.model.state_dict()

    def state(self) -> dict[str, Any]:
        """Everything to go on from, for a learner made of it and its :meth:`start_phase`.

        Raises:
            TrainingError: a weight is not finite, and what was saved before is better kept.
        """
        weights = self.model.state_dict()
        if not all(bool(torch.isfinite(v).all()) for v in weights.values()):
            raise TrainingError(
                "the weights are not finite: lower the learning rates. What was saved before stands"
            )
        scaler = self.accelerator.scaler
        return {
            "model": weights,
            "optimiser": None if self.raw_optimiser is None else self.raw_optimiser.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "ema": None if self.ema is None else (self.ema.state, self.ema.updates),
        }
