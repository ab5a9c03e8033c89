"""What notebooks show of the main objects: well-formed drawings with all of their parts."""

import xml.etree.ElementTree as ET

import torch
from hypothesis import given
from hypothesis import strategies as st

import unbraid as ub
from unbraid.report import Report

SVG = "{http://www.w3.org/2000/svg}"


@given(sites=st.integers(1, 6), bond=st.integers(1, 3))
def test_an_operator_is_a_box_a_site_and_a_number_a_leg(sites, bond):
    mpo = ub.MPO.random((3,) * sites, (2,) * sites, bond)
    root = ET.fromstring(mpo._repr_svg_())
    assert len([each for each in root.iter(f"{SVG}rect") if each.get("class") == "core"]) == sites
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert sorted(texts) == sorted(map(str, (*mpo.out_dims, *mpo.in_dims, *mpo.bond_dims)))
    width = float(root.get("width"))
    assert all(
        float(each.get("x")) + float(each.get("width")) <= width for each in root.iter(f"{SVG}rect") if each.get("x")
    )


def test_circuits_and_their_geometries_are_drawn():
    ansatz = ub.parse_ansatz("2b+cnot | relu | 1b", 3)
    assert ansatz._repr_svg_() == ub.Circuit(ansatz)._repr_svg_()
    assert "<svg" in ansatz._repr_svg_()


def test_a_disentangling_shows_how_it_went_and_its_factors():
    mpo = ub.MPO.from_dense(torch.randn(8, 8), (2, 2, 2), (2, 2, 2))
    result = ub.disentangle(mpo, ub.brickwall(3, 1), max_sweeps=2)
    root = ET.fromstring(f"<div>{result._repr_html_().replace('&rarr;', '')}</div>")
    assert len(list(root.iter(f"{SVG}svg"))) == 3
    assert f"{result.overlap:.4f}" in result._repr_html_()


def test_a_report_shows_its_table_with_everything_escaped():
    report = Report(accuracy={"dense": 0.5}, parameters={"dense": 10}, title="<script>alert(1)</script>")
    shown = report._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "50.0" in shown
