"""The logit lens: each block's output read out as if it were the last."""

import pytest
import torch

from forensics.model import loss
from forensics.model.decoder import Decoder, unembedding
from forensics.observe.logit_lens import logit_lens
from forensics.train.advance import advance


class Residuals:
    wants = frozenset({"resid_out"})

    def __init__(self):
        self.seen = {}

    def begin(self, state, policy): ...
    def gradients(self, state, grads, result):
        self.at = state.clone()

    def end(self, state, result): ...

    def tap(self, site, x):
        self.seen.setdefault(site.layer, []).append(x)


@pytest.mark.parametrize("family", ["llama", "olmo", "gpt2"])
def test_the_last_layers_lens_is_the_models_own_loss_with_no_divergence(
    family, make_shape, start_state, make_model, make_batch, make_policy, monkeypatch
):
    monkeypatch.setattr(loss, "CHUNK", 13)
    monkeypatch.setattr(loss, "SHORT", 4)
    shape = make_shape(family)
    state, watch, batch = start_state(shape, scale=4.0), Residuals(), make_batch()
    batch.weight[1, 3:] = 0.0
    batch.weight[2] = 3.0
    result = advance(state, batch, make_policy(), make_model(shape, 2), watch)
    resid = [torch.cat(watch.seen[i]) for i in range(2)]
    found = logit_lens(Decoder(shape), watch.at.params, resid, batch.tokens[:, 1:], batch.weight)
    mean = float((result.ce.double() * batch.weight).sum() / batch.weight.sum())
    assert found[-1]["lens_loss"] == pytest.approx(mean, rel=1e-6)
    assert found[-1]["lens_kl"] == 0.0

    params = {n: p.double() for n, p in watch.at.params.items()}
    decoder, w = Decoder(shape, plain=True), batch.weight.double()
    logs = [
        (decoder.read_out(x.double(), params) @ unembedding(params).T).log_softmax(-1)
        for x in resid
    ]
    for log_p, row in zip(logs, found):
        ce = -log_p.gather(-1, batch.tokens[:, 1:, None])[..., 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        kl = (logs[-1].exp() * (logs[-1] - log_p)).sum(-1)
        for name, x in (("lens_loss", ce), ("lens_entropy", entropy), ("lens_kl", kl)):
            assert row[name] == pytest.approx(float((x * w).sum() / w.sum()), rel=1e-4, abs=1e-6), (
                name
            )
    assert found[0]["lens_kl"] > 0.01
