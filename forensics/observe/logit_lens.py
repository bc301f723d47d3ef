"""The logit lens: what the residual stream after each block would predict.

The final norm and the unembedding read it out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forensics.model.decoder import Decoder, Params, unembedding
from forensics.model.loss import chunks


@torch.no_grad()
def logit_lens(
    decoder: Decoder, params: Params, resid: list[Tensor], targets: Tensor, weight: Tensor
) -> list[dict[str, float]]:
    """Read out each block's output (B, T, D): weighted mean loss, entropy, KL(final ‖ this), nats.

    targets (B, T) int64, weight (B, T). Chunked over rows: no B·T·V logits are held.
    """
    unembed = unembedding(params).float()
    flat = [decoder.read_out(x, params).reshape(-1, x.shape[-1]).float() for x in resid]
    target, weights = targets.reshape(-1), weight.reshape(-1).double()
    sums = torch.zeros(len(flat), 3, dtype=torch.float64, device=unembed.device)
    for rows in chunks(len(target)):
        final = (flat[-1][rows] @ unembed.T).log_softmax(1)
        p_final = final.exp()
        for layer, hidden in enumerate(flat):
            log_p = final if layer == len(flat) - 1 else (hidden[rows] @ unembed.T).log_softmax(1)
            parts = (
                -log_p.gather(1, target[rows, None])[:, 0],
                -(log_p.exp() * log_p).sum(1),
                (p_final * (final - log_p)).sum(1),
            )
            sums[layer] += torch.stack([(block.double() * weights[rows]).sum() for block in parts])
    means = sums / weights.sum().clamp_min(1e-300)
    return [dict(zip(("lens_loss", "lens_entropy", "lens_kl"), row)) for row in means.tolist()]
