"""What a checkpoint holds, and what is said of one that is damaged."""

import re
import shutil
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config

import atspeed.checkpoints.loading
from atspeed.checkpoints.checkpoint import DataSetting, open_checkpoint, save_checkpoint
from atspeed.checkpoints.loading import (
    add_item_tokens,
    begin_rows_by_level,
    check_positions,
    load_model,
    load_model_config,
    load_tokenizer,
    random_model,
    vocabulary_size,
)
from atspeed.checkpoints.lora import add_lora, merge_lora
from atspeed.checkpoints.model_files import check_model_path
from atspeed.processes import this_process, training_device
from conftest import ARCHITECTURES, tiny_model
from genrec.data.dataset import load_dataset
from genrec.data.toy import make_toy
from genrec.runtime.artefacts import make_facts
from genrec.runtime.errors import UserError
from genrec.runtime.files import read_json, write_json

CHAT = {  # as of Qwen2.5-Instruct, and what some checkpoints have beside it
    "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True,
    "eos_token_id": [5, 6], "suppress_tokens": [7], "no_repeat_ngram_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_toy(n_items=300, n_users=60).save(folder / "toy")
    return load_dataset(folder, "toy")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A target, of which the base model was made for chat."""
    folder = tmp_path_factory.mktemp("whole") / "target"
    model, tokenizer = random_model("tiny", data.catalogue, "float32", 0)
    model.generation_config = GenerationConfig(**CHAT)
    facts = make_facts("finetune_llama", {}, setting=asdict(DataSetting.of(data, 20, 512)))
    save_checkpoint(folder, model, tokenizer, data, facts)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "target")


def test_nothing_that_a_base_model_asks_of_generate_is_in_a_checkpoint_but_its_special_tokens(whole):
    saved = GenerationConfig.from_pretrained(whole)
    assert saved.to_diff_dict().keys() - {"transformers_version"} == {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert saved.eos_token_id == AutoTokenizer.from_pretrained(whole).eos_token_id


def emptied(file):
    file.write_bytes(b"")


def truncated(file):
    file.write_bytes(file.read_bytes()[:-30])


def beheaded(file):
    file.write_bytes(file.read_bytes()[:20])


def listed(file):
    file.write_text("[]")


def pointed(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def replaced(file):
    file.unlink()
    file.mkdir()


def sharded(file):
    """The second of two files is missing."""
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    file.rename(file.with_name(shards[0]))
    write_json(file.with_name("model.safetensors.index.json"), {"weight_map": dict(zip("ab", shards, strict=True))})


JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DAMAGES = [
    *((name, damage, message) for name in JSON for damage, message in (
        (emptied, "{}: is empty"), (truncated, "{}: not valid JSON"), (listed, "{}: not a JSON object"),
        (pointed, "{}: is a pointer of Git LFS"), (replaced, "{}: no such file"),
    )),
    ("config.json", lambda file: file.unlink(), "no model there"),
    *(("model.safetensors", damage, message) for damage, message in (
        (emptied, "{}: is empty"), (truncated, "{}: damaged or truncated"), (beheaded, "{}: damaged or truncated"),
        (pointed, "{}: is a pointer of Git LFS"), (replaced, "{}: no such file"),
        (lambda file: file.unlink(), "holds no weights"), (sharded, "00002-of-00002.safetensors: no such file"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_model_is_refused_before_any_work_as_base_and_as_target(data, folder, name, damage, message):
    check_model_path(str(folder))
    open_checkpoint(str(folder), "finetune_llama", "finetune_llama", data)
    damage(folder / name)
    message = re.escape(message.format(folder / name))
    with pytest.raises(UserError, match=message):
        check_model_path(str(folder))
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(folder), "finetune_llama", "finetune_llama", data)


@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f"], ids=["NaN", "infinity"])
def test_weights_that_are_not_numbers_are_one_line(folder, value):
    """Bytes that a disk or a copy has changed: the length is right, and safetensors has no checksum."""
    file = folder / "model.safetensors"
    load_model(str(folder))
    with file.open("r+b") as opened:
        opened.seek(-400, 2)
        opened.write(value)
    with pytest.raises(UserError, match=r"target: its weights .* are not all numbers: the file is damaged") as error:
        load_model(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_model_is_loaded_straight_onto_its_device(whole, monkeypatch):
    """Eight processes that load it on the host first need eight times its memory there."""
    asked = []

    def from_pretrained(*args, device_map, **settings):
        asked.append(device_map)
        return load(*args, device_map=device_map, **settings)

    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    device = torch.device("cpu")
    model, stored = load_model(str(whole), device=device), load_file(whole / "model.safetensors")
    weights = model.state_dict()
    assert asked == [{"": device}]
    assert not hasattr(model, "hf_device_map"), "by which the Trainer would take it for one on several devices"
    assert all(torch.equal(weights[name], weight) and weights[name].device == device for name, weight in stored.items())


@pytest.mark.parametrize(("fsdp", "expected"), [("false", "cuda:3"), ("true", "cpu")])
def test_what_is_to_lie_in_shards_is_loaded_on_the_host(monkeypatch, fsdp, expected):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", fsdp)
    this_process()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda:3"))
    assert training_device() == torch.device(expected)


def test_truncated_weights_of_pytorch_are_refused(folder):
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    check_model_path(str(folder))
    truncated(file)
    with pytest.raises(UserError, match=r"pytorch_model\.bin: damaged or truncated"):
        check_model_path(str(folder))


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(UP), rf"its weights lack {UP}, which would be random"),
        (lambda weights: [weights.pop(name) for name in sorted(weights)[-3:]], r"lack \S+ and 2 more, which would"),
        (
            lambda weights: weights.update({UP: torch.zeros(3, 5)}),
            rf"not those of its config.json: {UP} \(stored \(3, 5",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused_where_transformers_makes_them_up(
    folder, change, message
):
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file(weights, file, {"format": "pt"})
    load_model(str(folder))
    change(weights)
    save_file(weights, file, {"format": "pt"})
    check_model_path(str(folder))
    with pytest.raises(UserError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": None}, "does not say its setting"),
        ({"setting": {"dataset": "toy"}}, "does not say its setting"),
        ({"max_history": "20"}, "does not say its setting"),
        ({"arguments": None}, "does not say its arguments"),
    ],
)
def test_facts_that_lack_what_is_needed_are_refused(data, folder, change, message):
    facts = read_json(folder / "facts.json")
    if "max_history" in change:
        change = {"setting": facts["setting"] | change}
    write_json(folder / "facts.json", facts | change)
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(folder), "finetune_llama", "finetune_llama", data)


def test_an_adapter_is_no_model(folder):
    (folder / "config.json").unlink()
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "some/base"})
    with pytest.raises(UserError, match="is a LoRA adapter of some/base, not a whole model; merge it first"):
        check_model_path(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(eos_token=None), "its tokenizer has no EOS"),
        (None, "its tokenizer has no vocabulary|its tokenizer cannot be read"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_with_is_refused(folder, change, message):
    load_tokenizer(str(folder))
    if change:
        config = read_json(folder / "tokenizer_config.json")
        change(config)
        write_json(folder / "tokenizer_config.json", config)
    else:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(folder))


def test_a_cutoff_beyond_learnt_positions_is_refused(folder, whole):
    GPT2Config(n_positions=64).save_pretrained(folder)
    check_positions(str(folder), 64, "pass one")
    with pytest.raises(UserError, match="has positions for 64 tokens, and --cutoff is 65; pass one of at most 64"):
        check_positions(str(folder), 65, "pass one")
    check_positions(str(whole), 10**6, "pass one")


@pytest.fixture
def hub(monkeypatch, request):
    """A hub that answers with a status and an error code of Hugging Face's; None: nobody answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            status, code = request.param
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        atspeed.checkpoints.loading, "hf_hub_url", lambda name, file: f"{url}/{name}/resolve/main/{file}"
    )
    if request.param is None:
        server.server_close()
        yield
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        (None, "no such folder, and the hub cannot be asked for it"),
        ((503, None), "no such folder, and the hub cannot be asked for it"),
        ((403, "GatedRepo"), "is gated; ask for access"),
        ((404, "RepoNotFound"), "no such folder, and no such model on the hub"),
        ((404, "EntryNotFound"), "has no config.json on the hub"),
    ],
    indirect=["hub"],
)
def test_a_name_that_the_hub_does_not_give_is_refused_with_the_cause(hub, message):
    with pytest.raises(UserError, match=f"^some/model: {message}") as error:
        load_model_config("some/model")
    assert "\n" not in str(error.value)


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(UserError, match="some--model: no model there"):
        load_model_config("some--model")


def test_a_model_that_also_sees_is_taught_and_adapted_where_it_reads(data, whole, tmp_path):
    """Its vocabulary is that of the part which reads; adapters elsewhere would never get a gradient."""
    text = ARCHITECTURES["gemma"] | {"sliding_window": 64}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14}
    tokenizer = AutoTokenizer.from_pretrained(whole)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
        models.append(AutoModelForCausalLM.from_config(config))
        items = add_item_tokens(models[-1], tokenizer, data.catalogue)
    trained = add_lora(models[0], items, 4, 8, 0.0)
    adapted = {name for name, weight in trained.named_parameters() if weight.requires_grad and "lora" in name}
    assert adapted
    assert all(".language_model." in name for name in adapted)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            weight += 0.1 * (name in adapted)
    merged = merge_lora(trained, trained.state_dict(), models[1])
    facts = make_facts("finetune_llama", {}, setting=asdict(DataSetting.of(data, 20, 512)))
    save_checkpoint(tmp_path / "target", merged, tokenizer, data, facts)
    path, ids = str(tmp_path / "target"), torch.tensor([[1, items[0], items[-1]]])
    assert vocabulary_size(path) == len(tokenizer) > ARCHITECTURES["gemma"]["vocab_size"]
    with torch.no_grad():
        torch.testing.assert_close(load_model(path)(ids).logits, trained.eval()(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_item_tokens_begin_near_the_letter_of_their_level_and_no_other_row_changes(data, tied):
    model, tokenizer = random_model("tiny", data.catalogue, "float32", 0)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [module.weight.detach().clone() for module in modules]
    begin_rows_by_level(model, tokenizer, data.catalogue, seed=1)
    tokens = data.catalogue.tokens  # <a_0> … of the first level, <b_0> … of the second
    items = tokenizer.convert_tokens_to_ids(tokens)
    letters = [tokenizer(f" {token[1]}", add_special_tokens=False)["input_ids"][-1] for token in tokens]
    assert len({*letters}) == data.catalogue.levels
    for module, was in zip(modules, before, strict=True):
        rows = module.weight.detach()
        distances = torch.cdist(rows[items], was)
        torch.testing.assert_close(distances.argmin(1), torch.tensor(letters))
        assert len(rows[items].unique(dim=0)) == len(items)
        others = torch.ones(len(rows), dtype=torch.bool).index_fill(0, torch.tensor(items), False)
        assert torch.equal(rows[others], was[others])
    assert (modules[0].weight is modules[1].weight) == tied


@pytest.mark.parametrize(
    ("architecture", "modules"),
    [("gpt2", ("c_attn", "c_fc")), ("phi3", ("qkv_proj",)), ("llama", ("q_proj", "down_proj"))],
)
def test_lora_adapts_the_layers_that_are_named_and_refuses_names_that_a_model_has_not(architecture, modules):
    model = tiny_model(architecture, bos_token_id=1, eos_token_id=2)
    with pytest.raises(UserError, match=f"a {architecture} has no k_prj; .* can name .*{modules[0]}.* FULL=true bash"):
        add_lora(model, [5, 6], 4, 8, 0.0, (*modules, "k_prj"))
    trained = add_lora(model, [5, 6], 4, 8, 0.0, modules)
    learnt = [name for name, weight in trained.named_parameters() if weight.requires_grad and "lora" in name]
    assert {name.rpartition(".lora")[0].rpartition(".")[2] for name in learnt} == set(modules)
