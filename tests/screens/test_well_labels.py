"""From columns as public data sets name them to the labels of wells, and what is said where they cannot be used."""

from __future__ import annotations

import pytest

from cytolake.screens.label_vocabulary import LABELS, fold_column, label_vocabulary, parse_labels
from cytolake.screens.plate import Plate
from cytolake.screens.positions import name_of_well
from cytolake.screens.well_labels import declare_labels, read_labels

NOTHING = ["", "NA", "nan", "N/A", "#N/A", "#REF!", "#VALUE!", "null", "None", " na ", "<NA>", "-", "–"]


def plate(*rows, wells=None):
    """A plate with these rows in A01, A02, ..."""
    names = wells or [name_of_well(0, i) for i in range(len(rows))]
    mapped = tuple({"well": well, **row} for well, row in zip(names, rows, strict=True))
    return Plate(
        screen="s", plate="p", batch="b", source="/p", reader="files", channels=("DNA",), sites=(), wells=mapped
    )


def labels(*rows):
    """Labels of the wells, in order, without those that are empty."""
    found = []
    for each in read_labels(plate(*rows)).wells.values():
        said = {"perturbation": each.perturbation, **each.texts, "dose": each.dose, "control": each.control}
        found.append({name: value for name, value in said.items() if value not in ("", None)})
    return found


def codes(*rows):
    return [problem.problem for problem in read_labels(plate(*rows)).problems]


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize(
    "label", ["perturbation", "gene", "compound", "guide", "pathway", "replicate", "dose", "control"]
)
def test_a_cell_that_says_nothing_labels_nothing(label, nothing):
    other = {"perturbation": "replicate"}.get(label, "perturbation")
    (found, _) = labels({label: nothing, other: "x"}, {label: "1", other: "x"})
    assert label not in found


def test_where_the_gene_says_nothing_the_compound_is_the_perturbation():
    assert labels({"gene": "NA", "compound": "Taxol"}, {"gene": "TP53", "compound": "#N/A"}) == [
        {"perturbation": "Taxol", "compound": "Taxol"},
        {"perturbation": "TP53", "gene": "TP53"},
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Metadata_gene": "TP53", "Metadata_control_type": ""}, {"perturbation": "TP53", "gene": "TP53"}),
        ({"Gene Symbol": "TP53"}, {"perturbation": "TP53", "gene": "TP53"}),
        ({"Treatment": "serum"}, {"perturbation": "serum"}),
        ({"Image_Metadata_Compound": "taxol", "Image_Metadata_Concentration": "0.3"},
         {"perturbation": "taxol", "compound": "taxol", "dose": 0.3}),
        ({"compound_name": "taxol", "dose (µM)": "3", "MoA": "tubulin"},
         {"perturbation": "taxol", "compound": "taxol", "dose": 3.0, "pathway": "tubulin"}),
        ({"broad_sample": "BRD-K1", "pert_iname": "abc", "target": "EGFR", "pert_type": "trt", "control_type": ""},
         {"perturbation": "abc", "compound": "abc"}),
        ({"broad_sample": "BRDN1", "gene": "EGFR", "pert_iname": "EGFR", "control_type": "poscon_cp"},
         {"perturbation": "EGFR", "gene": "EGFR", "guide": "BRDN1", "control": "positive"}),
        ({"broad_sample": "BRD-K1", "mmoles_per_liter": "10", "solvent": "DMSO"},
         {"perturbation": "BRD-K1", "compound": "BRD-K1", "dose": 10.0}),
        ({"sirna": "s21714", "well_type": "treatment"}, {"perturbation": "s21714", "guide": "s21714"}),
        ({"sirna": "EMPTY", "well_type": "negative_control"}, {"perturbation": "EMPTY", "control": "negative"}),
        ({"sgRNA": "TP53_1", "gene": "TP53", "role": "sample"},
         {"perturbation": "TP53", "gene": "TP53", "guide": "TP53_1"}),
        ({"target": "PLK1", "siRNA": "s1"}, {"perturbation": "PLK1", "gene": "PLK1", "guide": "s1"}),
        ({"gene": "TP53", "treatment": "starved"}, {"perturbation": "TP53", "gene": "TP53"}),
    ],
)  # fmt: skip
def test_columns_are_read_by_the_names_that_public_data_sets_give_them(row, expected):
    assert labels(row) == [expected]


def test_a_column_that_is_not_chosen_is_kept_as_an_annotation():
    (well,) = read_labels(plate({"gene": "TP53", "treatment": "starved", "Metadata_cell_line": "U2OS"})).wells.values()
    assert well.annotations == {"treatment": "starved", "metadata_cell_line": "U2OS"}


def test_a_column_named_role_holds_controls_only_where_it_says_so():
    rows = [{"gene": "A", "role": "assay 1"}, {"gene": "B", "role": "assay 2"}]
    assert codes(*rows) == []
    assert [each.control for each in read_labels(plate(*rows)).wells.values()] == ["", ""]
    rows = [{"gene": "A", "role": "negative control"}, {"gene": "B", "role": "assay 2"}]
    assert codes(*rows) == ["unknown_control"]


def test_what_is_not_understood_is_kept_as_an_annotation():
    (well,) = read_labels(plate({"gene": "A", "dose": "10 uM", "control": "perhaps"})).wells.values()
    assert well.annotations == {"dose": "10 uM", "control": "perhaps"}


@pytest.mark.parametrize(
    ("column", "cell", "likely"),
    [
        ("gene", "1-Mar", "MARCH1"),
        ("gene", "2-Sep", "SEPT2"),
        ("Gene Symbol", "Sep-02", "SEPT2"),
        ("gene", "01. Mrz", "MARCH1"),
        ("gene", "2023-09-02", "SEPT2"),
        ("perturbation", "12/1/2023", "DEC1"),
        ("guide", "2.31E+13", "2310000E13"),
        ("compound", "2.31E+13", "231"),
        ("sample_id", "1.00E+05", "100"),
    ],
)
def test_what_a_spreadsheet_changed_is_reported_and_kept(column, cell, likely):
    found = read_labels(plate({column: cell, "control": ""}, {column: "TP53", "control": "trt"}))
    (problem,) = [each for each in found.problems if each.problem == "spreadsheet_damage"]
    assert (problem.well, problem.found) == ("A01", f"{column} {cell}")
    assert likely.replace("2310000E13", "231").split("E")[0] in problem.expected
    well = found.wells["A01"]
    assert cell in {well.perturbation, *well.annotations.values()}


@pytest.mark.parametrize(
    "cell", ["MARCHF1", "SEPTIN2", "Marimastat", "2-deoxyglucose", "1E5", "BRD-K1-Mar", "May", "H2-1"]
)
def test_a_name_that_no_spreadsheet_changed_is_not_reported(cell):
    assert codes({"gene": cell}, {"gene": "TP53"}) == []


@pytest.mark.parametrize("cell", ["10-12-2001", "1-Mar"])
def test_dates_where_dates_belong_are_not_reported(cell):
    assert codes({"gene": "TP53", "imaging_date": cell}) == []


def test_a_failed_formula_counts_as_empty_and_is_reported_once_for_its_column():
    found = read_labels(plate({"gene": "#REF!"}, {"gene": "#REF!"}, {"gene": "TP53"}))
    (problem,) = found.problems
    assert problem.problem == "spreadsheet_damage"
    assert "2 wells: A01, A02" in problem.found
    assert [each.perturbation for each in found.wells.values()] == ["", "", "TP53"]


def test_a_plate_without_any_perturbation_says_so_once_with_the_columns_that_repeat():
    rows = [{"variety": each, "note": str(i)} for i, each in enumerate(("wild", "wild", "mutant", "mutant"))]
    (problem,) = read_labels(plate(*rows)).problems
    assert problem.problem == "no_perturbation"
    assert "columns variety, note" in problem.found
    assert "variety (2 values) repeat" in problem.found
    assert "label_columns" in problem.next_step
    assert codes() == ["no_perturbation"]


def test_a_column_named_almost_as_a_label_is_reported_where_the_label_is_empty():
    rows = [{"gene": "TP53", "concentration_of_drug": "1"}]
    assert codes(*rows) == ["unused_label"]
    assert codes({**rows[0], "dose": "1"}) == []
    assert codes({"gene": "TP53", "cell_line": "U2OS", "solvent": "DMSO", "smiles": "C"}) == []


def test_a_declared_column_is_the_label_and_keeps_its_name_as_an_annotation():
    declared = declare_labels(plate({"gene": "TP53", "Genotype": "mutant"}), {"perturbation": "genotype"})
    (well,) = read_labels(declared).wells.values()
    assert (well.perturbation, well.texts["gene"]) == ("mutant", "TP53")
    assert well.annotations == {"genotype": "mutant"}
    assert declared.problems == ()


def test_a_declared_column_takes_the_place_of_one_that_has_the_labels_name():
    declared = declare_labels(plate({"gene": "1", "symbol": "TP53"}), {"gene": "symbol"})
    (well,) = read_labels(declared).wells.values()
    assert well.texts["gene"] == "TP53"
    assert well.annotations["gene (plate map)"] == "1"


def test_a_declared_column_that_is_not_there_is_a_problem_with_the_columns_that_are():
    declared = declare_labels(plate({"gene": "TP53"}), {"perturbation": "treated_with"})
    (problem,) = declared.problems
    assert (problem.problem, problem.found) == ("missing_column", "columns gene")


def test_every_label_is_declared_and_no_name_leads_to_two_unconditional_labels():
    vocabulary = label_vocabulary()
    assert set(vocabulary.labels) == set(LABELS)
    plain = [e.name for entries in vocabulary.labels.values() for e in entries if not e.unless and not e.only_with]
    assert len(plain) == len(set(plain))
    assert not vocabulary.label_names & vocabulary.annotations
    for label, entries in vocabulary.labels.items():
        assert entries[0].name == label, "a column with the label's own name comes first"


def test_names_of_columns_differ_in_letters_and_digits_alone():
    assert {fold_column(name) for name in ("Gene Symbol", "gene_symbol", "Metadata_GeneSymbol", "GENE-SYMBOL")} == {
        "genesymbol"
    }
    assert fold_column("Metadata") == "metadata"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": {}}, "labels: found"),
        ({"more": 1}, "found"),
        ({"labels": {**dict.fromkeys(LABELS, ()), "gene": [{"column": "gene", "unless": ["genes"]}]}}, "genes"),
        ({"labels": {**dict.fromkeys(LABELS, ()), "gene": [{"column": "gene"}, {"column": "Gene"}]}}, "twice"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_says_why(change, said):
    whole = {
        "nothing": [""], "errors": [], "annotations": [], "images": [], "labels": dict.fromkeys(LABELS, ()),
        "places": {"well": ["well"], "plate": ["plate"], "batch": ["batch"]},
        "objects": {"crop": [], "site": ["site"], "object": ["cell"], "y": ["y"], "x": ["x"]},
    }  # fmt: skip
    parse_labels(whole)
    with pytest.raises(ValueError, match=said):
        parse_labels(whole | change)


@pytest.mark.parametrize(
    ("cell", "dose"),
    [("0,5", 0.5), ("10,25", 10.25), ("1,5E-6", 1.5e-6), ("0,125", 0.125), ("1,000", None), ("1,5 uM", None)],
)
def test_a_decimal_comma_is_read_unless_it_may_part_thousands(cell, dose):
    read = read_labels(plate({"compound": "X", "dose": cell}))
    assert read.wells["A01"].dose == dose
    assert [problem.problem for problem in read.problems] == ([] if dose else ["bad_dose"])


def test_a_well_with_a_guide_and_no_gene_is_reported_where_the_plates_others_have_genes():
    rows = [{"sirna": "NT1", "gene": "", "control": ""}, {"sirna": "s1", "gene": "TP53", "control": ""}]
    (problem,) = read_labels(plate(*rows)).problems
    assert (problem.problem, problem.well) == ("no_perturbation", "A01")
    assert "NT1" in problem.found
    assert codes({**rows[0], "control": "negative"}, rows[1]) == []


def test_samples_that_stand_for_wells_have_labels_in_the_order_of_their_names():
    found = read_labels(plate({"gene": "TP53"}, {"gene": "KRAS"}, wells=["drug 10", "drug 2"])).wells
    assert {well: each.perturbation for well, each in found.items()} == {"drug 2": "KRAS", "drug 10": "TP53"}
    assert list(found) == ["drug 2", "drug 10"]
