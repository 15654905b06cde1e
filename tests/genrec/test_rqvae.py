"""RQ-VAE: what is quantised, what is learnt, and that it is the same again."""

from dataclasses import replace

import pytest
import torch

from conftest import vectors
from fake_cuda import move
from genrec.identifiers.quantise import shared
from genrec.identifiers.rqvae import RQVAE, RQVAESettings, load_rqvae, save_rqvae
from genrec.identifiers.rqvae_training import Training, fit_rqvae
from genrec.runtime.errors import UserError

SMALL = RQVAESettings(
    codebooks=(8, 12, 64), hidden=(24, 16), latent=6, epochs=4, batch_size=32, eval_epochs=2, learning_rate=5e-3
)


def model_with(codebooks, **changes):
    torch.manual_seed(0)
    model = RQVAE(
        replace(SMALL, codebooks=tuple(len(c) for c in codebooks), latent=codebooks[0].shape[1], **changes), 20
    )
    with torch.no_grad():
        for mine, codebook in zip(model.codebooks, codebooks, strict=True):
            mine.copy_(codebook)
    return model


def test_residual_quantisation_is_that_of_loops():
    torch.manual_seed(1)
    codebooks = [torch.randn(size, 6) for size in (4, 7, 5)]
    latents = torch.randn(30, 6)
    found = model_with(codebooks).quantise(latents)
    losses = []
    for row, latent in enumerate(latents):
        left = latent.clone()
        for level, codebook in enumerate(codebooks):
            code = min(range(len(codebook)), key=lambda k: (left - codebook[k]).square().sum().item())
            assert found.codes[row, level] == code
            losses.append((1 + 0.25) * (left - codebook[code]).square().mean())
            left = left - codebook[code]
        torch.testing.assert_close(found.vectors[row], latent - left)
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())


def test_gradients_pass_straight_through_to_the_latents_and_codebooks_learn_by_their_own_loss():
    codebooks = [torch.randn(4, 6), torch.randn(5, 6)]
    model, latents = model_with(codebooks), torch.randn(10, 6, requires_grad=True)
    weights = torch.randn(10, 6)
    found = model.quantise(latents)
    (found.vectors * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)
    assert all(c.grad is None for c in model.codebooks)
    latents.grad = None
    found = model.quantise(latents)
    found.loss.backward()
    code = int(found.codes[0, 0])
    mine = found.codes[:, 0] == code
    pull = 2 * (codebooks[0][code] - latents.detach()[mine]).sum(0) / latents.numel() / 2
    torch.testing.assert_close(model.codebooks[0].grad[code], pull)
    first = latents.detach() - codebooks[0][found.codes[:, 0]]
    second = first - codebooks[1][found.codes[:, 1]]
    torch.testing.assert_close(latents.grad, 0.25 * 2 * (first + second) / latents.numel() / 2)


def test_the_last_level_is_used_uniformly_in_training_only():
    codebook = torch.stack([torch.zeros(6), torch.ones(6)])
    model = model_with([codebook + 5, codebook])
    latents = 5 + 0.1 * torch.randn(40, 6)
    assert model.quantise(latents).codes[:, 1].sum() == 0
    assert 10 <= model.quantise(latents, 0.003).codes[:, 1].sum() <= 30
    assert model.quantise(latents, 0.003).codes[:, 0].sum() == 0


@pytest.mark.parametrize("method", ["rq-vae", "rq-kmeans"])
def test_a_fit_is_the_same_for_the_same_seed_and_reads_only_its_rows(method):
    embeddings, settings = vectors(), replace(SMALL, method=method)
    state = torch.random.get_rng_state()
    rows = torch.arange(0, 300, 2)
    one, other = fit_rqvae(embeddings, settings, rows=rows), fit_rqvae(embeddings, replace(settings, seed=1), rows=rows)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's random numbers are touched"
    changed = embeddings.clone()
    changed[1::2] = torch.nan
    again = fit_rqvae(changed, settings, rows=rows)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    codes = one.model.codes(embeddings)
    assert codes.shape == (300, 3)
    assert [int(codes[:, level].max()) < size for level, size in enumerate(SMALL.codebooks)] == [True] * 3
    assert not torch.equal(codes, other.model.codes(embeddings))
    assert one.best.resolved_rate == min(look.resolved_rate for look in one.looks)


def test_fitted_codes_tell_groups_apart_and_resolution_tells_items_apart():
    embeddings = vectors()
    result = fit_rqvae(embeddings, replace(SMALL, epochs=12, eval_epochs=6))
    codes = result.model.codes(embeddings)
    resolved = result.model.resolve(embeddings, codes)
    assert shared(codes)[-10:].all(), "equal vectors, equal codes"
    assert not shared(resolved).any()
    assert torch.equal(resolved[~shared(codes)], codes[~shared(codes)])
    assert result.model.error(embeddings, resolved) == pytest.approx(result.best.resolved_error)
    guess = (embeddings - embeddings.mean(0)).square().mean()
    decoded = result.model.decoder(result.model.sum_of_vectors(codes)) * result.model.scale + result.model.centre
    share = ((decoded - embeddings).square().mean() / guess).item()
    assert result.model.error(embeddings, codes) == pytest.approx(share, rel=1e-3)
    assert share < 0.5


def test_new_items_get_free_codes_and_old_ones_are_not_asked():
    embeddings = vectors()
    model = fit_rqvae(embeddings[:290], SMALL).model
    old = model.resolve(embeddings[:290], model.codes(embeddings[:290]))
    codes = model.codes(embeddings[290:])
    found = model.resolve(embeddings[290:], codes, old)
    assert found.shape == (10, 3)
    assert not shared(torch.cat([old, found]))[290:].any()
    assert torch.equal(found[:, :-1], codes[:, :-1])


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
def test_an_interrupted_fit_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, optimizer):
    embeddings, settings, epochs = vectors(), replace(SMALL, optimizer=optimizer), []

    class Interrupted(Exception):
        pass

    def run_epoch(self, *arguments, whole=Training.run_epoch):
        epochs.append(self.epoch)
        if len(epochs) == 6:  # in the fourth epoch after the warm-up
            raise Interrupted
        return whole(self, *arguments)

    expected = fit_rqvae(embeddings, settings)
    monkeypatch.setattr(Training, "run_epoch", run_epoch)
    with pytest.raises(Interrupted):
        fit_rqvae(embeddings, settings, work=tmp_path)
    with pytest.raises(UserError, match=r"checkpoint.safetensors: was made with other settings"):
        fit_rqvae(embeddings, replace(settings, seed=1), work=tmp_path)
    found = fit_rqvae(embeddings, settings, work=tmp_path)
    assert len(epochs) == 6 + 2, "it went on after the second epoch"
    assert found.looks == expected.looks
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weight, found.model.state_dict()[name]), name


def test_a_saved_model_is_the_same_model(tmp_path):
    embeddings, path = vectors(), tmp_path / "model.safetensors"
    model = fit_rqvae(embeddings, SMALL).model
    save_rqvae(model, path)
    again = load_rqvae(path)
    assert again.settings == SMALL
    assert torch.equal(again.codes(embeddings), model.codes(embeddings))
    model.codebooks[0].data[0, 0] = float("nan")
    save_rqvae(model, path)
    with pytest.raises(UserError, match=r"model.safetensors: its weights codebooks.* are not all numbers"):
        load_rqvae(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"model.safetensors: damaged or not ours"):
        load_rqvae(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "vq"}, "--method vq: choose from rq-vae, rq-kmeans"),
        ({"optimizer": "sgd"}, "--optimizer sgd: choose from adamw, adagrad"),
        ({"distinct": "digit", "codebooks": (8,) * 26}, "give 1 to 25 levels"),
        ({"codebooks": ()}, "--codebooks : give 1 to 26 levels"),
        ({"learning_rate": 1e30}, r"--learning_rate 1e\+30: the training diverged by epoch 4"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(UserError, match=message):
        fit_rqvae(vectors(), replace(SMALL, **change))


@pytest.mark.parametrize("optimizer", ["adamw", "adagrad"])
def test_a_resumed_optimiser_counts_its_steps_on_the_cpu(device, optimizer, tmp_path):
    """On a GPU every step of the training would wait for them, once a weight."""
    settings = replace(SMALL, optimizer=optimizer)
    fit_rqvae(vectors(60), settings, work=tmp_path)
    training = Training(move(RQVAE(settings, 20)), tmp_path / "checkpoint.safetensors")
    assert training.restore()
    for weight, state in training.optimizer.state.items():
        assert {name: each.is_cuda for name, each in state.items()} == {name: name != "step" for name in state}
        assert weight.is_cuda
    assert all(weight.is_cuda for weight in training.best.values())
