"""VQDiffusion: the conditional discrete diffusion model of the next frame's tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from models.distributed import all_rows
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.denoiser import Condition, Denoiser, HistoryEmbedding
from models.vqdiffusion.schedule import (
    LOG_PROB_MIN,
    Schedule,
    alpha1_probabilities,
    importance_distribution,
    log_tables,
)


class VQDiffusion(nn.Module):
    """Discrete diffusion over the tokens of the next frame (VQ-Diffusion, arXiv 2111.14822), conditioned on the
    tokens of the last frames (Diffusion Reward, arXiv 2312.14134).

    State dict names are the official ones; `condition_emb.frame_emb`, `condition_emb.place_emb` exist only with
    `condition_position="learned"`.
    """

    log_at: Tensor
    Lt_history: Tensor
    Lt_count: Tensor

    def __init__(self, config: VQDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_emb = HistoryEmbedding(config)
        self.transformer = Denoiser(config)
        for name, table in log_tables(config.num_diffusion_steps, config.num_codes).items():
            self.register_buffer(name, table)
        self.register_buffer("Lt_history", torch.zeros(config.num_diffusion_steps))
        self.register_buffer("Lt_count", torch.zeros(config.num_diffusion_steps))
        exact = alpha1_probabilities(config.num_diffusion_steps, config.num_codes)
        self.register_buffer("keep", torch.from_numpy(exact["att"]), persistent=False)
        self.register_buffer("mask", torch.from_numpy(exact["ctt"]), persistent=False)
        self._tables: tuple[tuple, tuple[Tensor, Tensor | None]] | None = None

    @property
    def num_codes(self) -> int:
        """K, the number of codes."""
        return self.config.num_codes

    @property
    def mask_id(self) -> int:
        """The token of the absorbing state, K."""
        return self.config.num_codes

    @property
    def num_steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.config.num_diffusion_steps

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_at.device

    @property
    def schedule(self) -> Schedule:
        """The forward process, on the model's device."""
        return Schedule.from_tables(dict(self.named_buffers(recurse=False)), self.num_codes)

    def all_mask(self, rows: int) -> Tensor:
        """The fully noisy state: (rows, L) int64 of mask tokens."""
        return torch.full((rows, self.config.content_len), self.mask_id, device=self.device)

    def condition(self, cond_tokens: Tensor) -> Condition:
        """Keys and values of every cross-attention for histories of tokens.

        Keys and values are linear in the embedding, so they are looked up in one table per code, plus one per
        position with `condition_position="learned"`. Without gradients the tables are kept until a weight changes.

        Args:
            cond_tokens: (B, F*L) int64 tokens of F history frames, oldest first. F may differ from
                `num_history_frames`; with learned positions it must not be larger.

        Returns:
            The condition of B rows.

        Raises:
            ValueError: if the tokens do not form whole frames, or there are more frames than positions.
        """
        self._check_condition(cond_tokens)
        code_table, position_table = self._projection_tables(cond_tokens)
        if code_table is None:
            flat = rearrange(cond_tokens, "b s -> (b s)")
            projected = self.transformer.project(self.condition_emb.emb(flat))
            projected = rearrange(projected, "(b s) c -> b s c", b=len(cond_tokens))
        else:
            projected = F.embedding(cond_tokens, code_table)
        if position_table is not None:
            projected = projected + position_table[-cond_tokens.shape[1] :]
        split = rearrange(
            projected,
            "b s (layer two head d) -> two layer b head s d",
            layer=self.config.num_layers,
            two=2,
            head=self.config.num_heads,
        )
        keys, values = split.unbind(0)
        return Condition(keys, values)

    def predict_log_x0(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicted log p(x0 | x_t, history) over codes.

        Args:
            x_t: (B, L) int64, K where masked; or (1, L) where all rows are equal.
            t: (B,) int64 in [0, T); or (1,).
            condition: Of B rows.

        Returns:
            (B, K, L) float32 log-probabilities clamped to [-70, 0]; softmax in float64, since small
            probabilities are divided by small transition probabilities later.
        """
        logits = rearrange(self.transformer(x_t, t, condition), "b l k -> b k l")
        return F.log_softmax(logits.double(), dim=1).float().clamp(LOG_PROB_MIN, 0.0)

    def sample_steps(self, rows: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws training steps from the importance distribution.

        Returns:
            t (rows,) int64 and its probability (rows,) float32.
        """
        weights = importance_distribution(self.Lt_history, self.Lt_count)
        t = torch.multinomial(weights, rows, replacement=True, generator=generator)
        return t, weights[t]

    def training_loss(
        self,
        x0: Tensor,
        cond_tokens: Tensor,
        t: Tensor | None = None,
        pt: Tensor | None = None,
        x_t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Variational loss with importance-sampled steps plus the auxiliary x0 loss (arXiv 2111.14822, eq. 9, 12).

        In training mode the loss history behind the importance distribution is updated; in eval mode it is not.

        Args:
            x0: (B, L) int64 codes of the true next frame.
            cond_tokens: (B, F*L) int64 codes of the history.
            t: (B,) int64 steps, drawn when None.
            pt: (B,) float32 probability of each step; required with `t`.
            x_t: (B, L) int64 noisy tokens, drawn when None.
            generator: Source of randomness on the model's device.

        Returns:
            Scalar loss in nats per token, and per-row metrics (B,), detached: `kl`, `decoder_nll`,
            `kl_or_nll`, `aux_kl`, `aux_or_nll`, `vb_loss`, `t`.
        """
        if t is None or pt is None:
            t, pt = self.sample_steps(len(x0), generator)
        schedule = self.schedule
        if x_t is None:
            x_t = schedule.noisy_tokens(x0, t, generator)
        log_x0 = self.predict_log_x0(x_t, t, self.condition(cond_tokens))
        log_model = schedule.posterior(log_x0, x_t, t)

        kl = reduce(schedule.posterior_kl(x0, x_t, log_model, t), "b l -> b", "sum")
        decoder_nll = -reduce(_pick(log_model, x0), "b l -> b", "sum")
        aux_kl = -reduce(_pick(log_x0, x0), "b l -> b", "sum")
        # at t = 0 there is no posterior to match: the likelihood of the clean frame replaces both terms
        kl_or_nll = torch.where(t == 0, decoder_nll, kl)
        aux_or_nll = torch.where(t == 0, decoder_nll, aux_kl)
        if self.training:
            self._remember_losses(t, kl_or_nll.detach())
        vb_loss = kl_or_nll / pt + self._auxiliary_weight(t) * aux_or_nll / pt
        metrics = {
            "kl": kl,
            "decoder_nll": decoder_nll,
            "kl_or_nll": kl_or_nll,
            "aux_kl": aux_kl,
            "aux_or_nll": aux_or_nll,
            "vb_loss": vb_loss,
        }
        detached = {name: value.detach() for name, value in metrics.items()}
        return vb_loss.sum() / x0.numel(), {**detached, "t": t}

    def all_mask_loss(self, x0: Tensor, cond_tokens: Tensor) -> Tensor:
        """Cross entropy of the next frame predicted in one step from the all-mask state at the last step.

        The one-forward reward estimator uses the network only there, so training this state alone teaches a small
        model most per second.

        Args:
            x0: (B, L) int64 codes of the true next frame.
            cond_tokens: (B, F*L) int64 codes of the history.

        Returns:
            Scalar, nats per token.
        """
        logits = self.transformer(self.all_mask(1), self._last_step(), self.condition(cond_tokens))
        return F.cross_entropy(rearrange(logits, "b l k -> (b l) k"), rearrange(x0, "b l -> (b l)"))

    def _last_step(self) -> Tensor:
        return torch.full((1,), self.num_steps - 1, device=self.device)

    def _auxiliary_weight(self, t: Tensor) -> Tensor:
        weight = self.config.auxiliary_loss_weight
        return (2 - t / self.num_steps) * weight if self.config.adaptive_auxiliary_loss else t * 0 + weight

    @torch.no_grad()
    def _remember_losses(self, t: Tensor, loss: Tensor) -> None:
        """Running mean (rate 0.1) of the squared loss of each step; of equal steps in a batch the last one counts.

        Found without `scatter_`, which leaves to chance on a GPU which of equal steps counts: workers would drift apart.
        """
        t, loss = all_rows(t), all_rows(loss)
        rows = torch.arange(len(t), device=t.device)
        last = torch.full_like(self.Lt_history, -1, dtype=torch.int64).scatter_reduce_(0, t, rows, "amax")
        updated = 0.1 * loss[last.clamp_min(0)] ** 2 + 0.9 * self.Lt_history
        self.Lt_history.copy_(torch.where(last >= 0, updated, self.Lt_history))
        self.Lt_count.scatter_add_(0, t, torch.ones_like(loss))

    def _check_condition(self, cond_tokens: Tensor) -> None:
        length, place_count = cond_tokens.shape[1], self.config.content_len
        if length == 0 or length % place_count:
            raise ValueError(
                f"condition has {length} tokens, expected whole frames of {place_count} tokens each; "
                "concatenate the tokens of the history frames, oldest first"
            )
        if self.condition_emb.has_position and length > self.config.condition_len:
            raise ValueError(
                f"condition has {length // place_count} frames, but this model has learned positions for "
                f"{self.config.num_history_frames}; give at most that many history frames"
            )

    def _projection_tables(self, cond_tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values per code and per position. The former is None where it would cost more than the tokens."""
        # weights made in inference mode carry no version, so a change of theirs could not be noticed
        if not torch.is_grad_enabled() and not self.condition_emb.emb.weight.is_inference():
            key = self._weights_key()
            if self._tables is None or self._tables[0] != key:
                self._tables = (key, (self._code_table(), self._position_table()))
            return self._tables[1]
        code_table = self._code_table() if cond_tokens.numel() > self.num_codes else None
        return code_table, self._position_table()

    def _code_table(self) -> Tensor:
        return self.transformer.project(self.condition_emb.emb.weight)

    def _position_table(self) -> Tensor | None:
        if not self.condition_emb.has_position:
            return None
        position = self.condition_emb.position()
        # the bias is already in the code table
        return self.transformer.project(position) - self.transformer.project(torch.zeros_like(position[:1]))

    def _weights_key(self) -> tuple:
        """Changes whenever a weight behind the tables is written, replaced, moved or cast, or autocast is switched."""
        weights = list(self.condition_emb.parameters())
        for attention in self.transformer.cross_attentions():
            weights += [*attention.key.parameters(), *attention.value.parameters()]
        precision = torch.is_autocast_enabled(self.device.type)  # tables made under it are in its precision
        return (precision, *((w.data_ptr(), w._version, w.dtype, w.device) for w in weights))


def _pick(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token: (B, C, L), (B, L) -> (B, L)."""
    return log_probs.gather(1, tokens[:, None])[:, 0]
