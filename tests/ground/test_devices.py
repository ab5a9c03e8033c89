"""Devices by name, and content on them."""

import pytest
import torch

from unbraid.ground.devices import find_device, moved
from unbraid.ground.errors import InvalidInputError
from unbraid.ground.manifest import build_manifest


def test_the_cpu_is_always_there():
    assert find_device("cpu") == torch.device("cpu")
    assert build_manifest(device="cpu")["machine"]["device"] == "the CPU"


@pytest.mark.parametrize("name", ["nowhere", "meta", "cpu:cpu", "cuda:99", ""])
def test_devices_that_cannot_compute_are_refused(name):
    with pytest.raises(InvalidInputError, match=f"device '{name}'.*Here are cpu"):
        find_device(name)


def test_content_is_moved_and_keeps_its_form():
    # the meta device stands for another one
    content = {"ids": torch.ones(2), "rows": [torch.zeros(3), (torch.zeros(1), "text")], "none": None}
    found = moved(content, "meta")
    assert found["ids"].device.type == found["rows"][0].device.type == found["rows"][1][0].device.type == "meta"
    assert isinstance(found["rows"][1], tuple)
    assert (found["rows"][1][1], found["none"]) == ("text", None)
    assert content["ids"].device.type == "cpu"
