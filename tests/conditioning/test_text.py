"""Captions as tokens, the encoder that reads them, and what both networks make of a context and its mask."""

import pytest
import torch
from torch import nn

from ldm.condition import Condition
from ldm.conditioning.labels import Kept
from ldm.conditioning.text import Captions, Embeddings
from ldm.conditioning.tokenizer import BEGIN, BYTES, Tokenizer, vocabulary_of
from ldm.models.dit import DiT
from ldm.models.text_transformer import TextTransformer
from ldm.models.unet import UNet

TEXTS = ["a red hat", "A red, red ball", "hat"]


def kept(**changed):
    told = {"place": "runs/latents", "captioned": 3, "captions": lambda: TEXTS, "text_encoder": None}
    return Kept(**(told | {"low_resolution": None, "resolution": 32, "latent_size": 8} | changed))


def test_words_are_numbered_by_how_often_they_come_and_others_are_spelled():
    assert vocabulary_of(TEXTS, 3) == ["red", "a", "hat"]
    assert vocabulary_of(TEXTS, 99) == ["red", "a", "hat", ",", "ball"]
    tokens, mask = Tokenizer(["red", "hat"], 6)(["Red hat", "", "é red", "red red red red red red red"])
    first = 1 + BYTES
    assert tokens[0].tolist() == [BEGIN, first, first + 1, 0, 0, 0]
    assert mask.sum(1).tolist() == [3, 1, 4, 6]
    assert tokens[2].tolist()[:4] == [BEGIN, 1 + 0xC3, 1 + 0xA9, first]


def test_the_empty_text_is_the_null_condition():
    kind = Captions(tokens=5, words=["red"])
    null = kind.null(3, (4, 8, 8))
    said = kind.prompts(["", "red"], torch.tensor([3, 3]))
    assert said.says_nothing(null).tolist() == [True, False]
    dropped = said.dropped(torch.tensor([False, True]), null)
    assert dropped.says_nothing(null).all()
    frozen = Embeddings(width=6, tokens=5, encoder={"source": "nowhere", "fingerprint": "0"})
    assert frozen.prompts(["", " "], torch.tensor([3, 3])).says_nothing(frozen.null(3, (4, 8, 8))).all()


def test_its_vocabulary_is_the_latents_and_what_they_lack_is_said():
    assert Captions(vocabulary=2).learned(kept()) == {"words": ["red", "a"]}
    assert Captions(words=["mine"]).learned(kept()) == {}
    with pytest.raises(ValueError, match="have no captions"):
        Captions().learned(kept(captioned=0))
    with pytest.raises(ValueError, match="have no embeddings"):
        Embeddings().learned(kept())
    card = {"source": "minilm", "fingerprint": "ab", "tokens": 7, "width": 5}
    assert Embeddings().learned(kept(text_encoder=card))["tokens"] == 7
    with pytest.raises(ValueError, match="another text encoder"):
        Embeddings(encoder={"source": "minilm", "fingerprint": "cd"}).learned(kept(text_encoder=card))


def test_labels_are_told_only_where_that_is_asked_for():
    x0, label = torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 2])
    for labels in (False, True):
        kind = Captions(tokens=5, words=["red"], labels=labels)
        context, mask = kind.said(TEXTS)
        condition, where = kind.condition(x0, label, kind.null(3, (4, 8, 8)), {"context": context, "mask": mask})
        assert where is None
        assert condition.label.tolist() == ([0, 1, 2] if labels else [3, 3, 3])
        assert kind.of_labels(label, kind.null(3, (4, 8, 8))).label.tolist() == condition.label.tolist()


def stirred(module):
    """Without the zeros that a new network ends in, by which it would say nothing."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def test_the_encoder_is_torchs_own_transformer():
    encoder = stirred(TextTransformer(width=128, vocabulary=11, tokens=6, depth=2))
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(
            128, 2, 512, 0.0, lambda x: nn.functional.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
        ),
        2,
        enable_nested_tensor=False,
    ).train()  # whose fast path in evaluation knows no tanh
    for ours, layer in zip(encoder.blocks, theirs.layers, strict=True):
        names = {"attn.qkv.weight": "self_attn.in_proj_weight", "attn.qkv.bias": "self_attn.in_proj_bias"}
        names |= {f"attn.proj.{k}": f"self_attn.out_proj.{k}" for k in ("weight", "bias")}
        names |= {f"mlp.fc{i}.{k}": f"linear{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}
        names |= {f"norm{i}.{k}": f"norm{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}
        layer.load_state_dict({names[name]: tensor for name, tensor in ours.state_dict().items()})
    tokens, mask = torch.randint(11, (3, 5)), torch.arange(5) < torch.tensor([[5], [2], [1]])
    x = encoder.token_embedding(tokens) + encoder.position_embedding[:5]
    expected = encoder.norm(theirs(x, src_key_padding_mask=~mask))
    torch.testing.assert_close(encoder(tokens, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


TEXT = {"vocabulary": 300, "tokens": 6, "depth": 1}


def networks():
    shared = {"in_channels": 2, "num_classes": 3, "context_dim": 32, "text": TEXT}
    unet = UNet(**shared, model_channels=32, channel_mult=[1], num_res_blocks=1, attention_resolutions=[1], num_heads=2)
    dits = [
        DiT(**shared, latent_size=[4, 4], patch=1, model_channels=32, depth=2, head_channels=16, context_as=how)
        for how in ("cross", "joint")
    ]
    return [unet, *dits]


@pytest.mark.parametrize("make", [UNet, DiT])
def test_a_pooled_context_starts_as_none_and_is_the_mean_of_its_tokens(make):
    shape = {
        UNet: {"channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1], "num_heads": 2},
        DiT: {"latent_size": [4, 4], "patch": 1, "depth": 2, "head_channels": 16},
    }[make]
    shape |= {
        "in_channels": 2,
        "num_classes": 3,
        "context_dim": 8,
        "model_channels": 64,
    }  # a norm of one channel forgets it
    plain, pooled = stirred(make(**shape)), make(**shape, context_pooled=True).eval()
    pooled.load_state_dict(pooled.state_dict() | plain.state_dict())
    x, t, context = torch.randn(2, 2, 4, 4), torch.rand(2), torch.randn(2, 5, 8)
    mask = torch.arange(5) < torch.tensor([[4], [2]])
    condition = Condition(torch.tensor([3, 3]), context=context, mask=mask)
    assert torch.equal(pooled(x, t, condition), plain(x, t, condition))  # to the bit
    stirred(pooled.pooled_embed)
    mean = torch.stack([context[0, :4].mean(0), context[1, :2].mean(0)])
    expected = pooled.pooled_embed[2](nn.functional.silu(pooled.pooled_embed[0](mean)))
    torch.testing.assert_close(pooled.pooled_embed(context, mask), expected)
    assert not torch.allclose(pooled(x, t, condition), plain(x, t, condition))
    with pytest.raises(ValueError, match=r"net\.context_dim"):
        make(**(shape | {"context_dim": None}), context_pooled=True)


@pytest.mark.parametrize("net", networks(), ids=["unet", "dit-cross", "dit-joint"])
def test_a_network_reads_tokens_and_no_further_than_their_mask(net):
    net = stirred(net)
    x, t, label = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([3, 3])
    tokens, mask = torch.randint(300, (2, 6)), torch.arange(6) < torch.tensor([[4], [2]])
    said = net(x, t, Condition(label, context=tokens, mask=mask))
    absent = torch.where(mask, tokens, torch.randint(300, (2, 6)))
    torch.testing.assert_close(net(x, t, Condition(label, context=absent, mask=mask)), said)
    other = torch.where(torch.arange(6) == 1, (tokens + 1) % 300, tokens)
    assert ((net(x, t, Condition(label, context=other, mask=mask)) - said).abs().amax((1, 2, 3)) > 1e-4).all()
    said.square().sum().backward()
    assert net.text.token_embedding.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"wants a context of tokens, long \[B, L\]"):
        net(x, t, Condition(label, context=torch.randn(2, 6, 32), mask=mask))


def test_a_network_without_an_encoder_wants_embeddings():
    net = DiT(
        in_channels=2, num_classes=3, context_dim=32, latent_size=[4, 4], patch=1, model_channels=32, depth=1,
        head_channels=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"wants a context of embeddings, \[B, L, D\]"):
        net(torch.randn(1, 2, 4, 4), torch.rand(1), Condition(torch.tensor([3]), context=torch.zeros(1, 6).long()))
    with pytest.raises(ValueError, match=r"net\.context_dim"):
        UNet(in_channels=2, num_classes=3, text=TEXT, model_channels=32, channel_mult=[1], num_res_blocks=1,
             attention_resolutions=[1], num_heads=2)  # fmt: skip
