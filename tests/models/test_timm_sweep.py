"""The smallest model of each of timm's families: `describe`, and a training step at 64 px."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.models.factory import build_model

# By parameters, as built on the meta device, of timm 1.0.31; families of more than 100 million
# (deepseek_vit, gemma4_vit) are left out.
SMALLEST = (
    *("beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny"),
    *("convit_tiny", "convmixer_768_32", "test_convnext", "cpubone_nano"),
    *("crossvit_tiny_240", "csatv2", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny"),
    *("deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small"),
    *("efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1"),
    *("efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0"),
    *("fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b"),
    *("hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t"),
    *("inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4"),
    *("lcnetv2_small", "levit_128s", "lowformer_b0", "test_mambaout", "test_coatnet"),
    *("poolformerv2_s12", "gmlp_ti16_224", "lcnet_035", "mobilenetv5_base"),
    *("mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nasnetalarge"),
    *("nest_tiny", "nextvit_small", "test_nfnet", "pit_ti_224", "pnasnet5large"),
    *("pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050"),
    *("repvit_m1", "res2next50", "resnest14d", "test_resnet", "resnetv2_18", "rexnet_100"),
    *("selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18"),
    *("starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224"),
    *("tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "visformer_tiny"),
)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on, four to test on."""
    return write_layout(tmp_path_factory.mktemp("few"), train=4, test=4)


def size_of(name: str) -> int:
    """64 px, or what the error names where that cannot be."""
    try:
        build_model(f"timm:{name}", 4, 64, {})
    except UsageError as error:
        return int(re.findall(r"image_size = 64: .*; use --image-size (\d+)$", str(error))[0])
    return 64


@pytest.mark.faults
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_model_of_a_family_is_described_and_trained(
    cli: Any, tmp_path: Path, few: Path, name: str
) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size = size_of(name)
    words = ("--image-size", str(size), "--num-classes", "4", "--json")
    code, out, err = cli("describe", f"timm:{name}", *words)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["macs"] > 0
    assert sum(layer["parameters"] for layer in facts["layers"]) == facts["parameters"]
    if size > 64:
        return  # trained at 64 px only
    row = stl10bench.train(
        f"timm:{name}",
        **{"freeze": False, "pretrained": False, "image_size": 64, "precision": "no"},
        **{"epochs": 1, "batch_size": 4, "val_fraction": 0.0, "tracker": "none"},
        **{"data_dir": few, "runs_dir": tmp_path, "threads": 1},
    )
    # cpubone and lowformer compute 0.04 % less where the memory format is channels_last.
    assert row.macs == pytest.approx(facts["macs"], rel=1e-3)
    assert not [note for note in row.test_notes if "not known" in note]
    assert stl10bench.load(tmp_path / str(row.checkpoint)).class_names
