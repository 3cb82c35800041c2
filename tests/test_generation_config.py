"""generation_config.json: recommended sampling and end tokens."""

import pytest

from mlx_lfm2vl import ConfigError
from mlx_lfm2vl.config import GenerationConfig


def test_generation_config_as_published_is_greedy():
    config = GenerationConfig.from_dict(
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
    )
    assert config == GenerationConfig(eos_token_ids=(7,), bos_token_id=1, pad_token_id=0)
    assert not config.do_sample and config.temperature is None


def test_generation_config_with_recommended_sampling():
    config = GenerationConfig.from_dict(
        {"do_sample": True, "temperature": 0.1, "min_p": 0.15, "repetition_penalty": 1.05, "eos_token_id": [7, 2]}
    )
    assert (config.temperature, config.min_p, config.repetition_penalty) == (0.1, 0.15, 1.05)
    assert config.do_sample and config.eos_token_ids == (7, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("min_p", float("nan")),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0),
        ("do_sample", "yes"),
        ("eos_token_id", -7),
    ],
)
def test_generation_config_refuses_nonsense(name, value):
    with pytest.raises(ConfigError, match=f"generation_config.json: {name} is"):
        GenerationConfig.from_dict({name: value})
