"""Agreement of methods with their authors' code: the entries of docs/fidelity.md.

`python tools/document.py` writes the page.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Departure:
    """A difference that is kept on purpose.

    Attributes:
        what: the difference.
        why: the reason to keep it.
        option: the option that undoes it, or "".
    """

    what: str
    why: str
    option: str = ""


@dataclass(frozen=True)
class Entry:
    """A method compared with its authors' code.

    Attributes:
        method: name of the method.
        paper: authors and year.
        code: repository and revision that were read.
        config: the config file of the paper's recipe.
        tests: names of the tests that compare one step, in tests/methods/reference/ or elsewhere.
        departures: differences that are kept.
    """

    method: str
    paper: str
    code: str
    config: str
    tests: tuple[str, ...]
    departures: tuple[Departure, ...] = ()


_START = Departure(
    "random starts are clipped to [0, 1]",
    "the released code clips from the second step on, so that its first pass is on clips outside"
    " of [0, 1]",
)
_ATTACK_STATISTICS = Departure(
    "the attack does not update running statistics of norms",
    "models are not evaluated on intermediate clips of an attack",
)

ENTRIES = (
    Entry(
        "SimCLR, SupCon",
        "Chen et al. 2020; Khosla et al. 2020",
        "HobbitLong/SupContrast@66a8fe5",
        "cifar10_csl, cifar10_supcon",
        ("test_simclr_of_supcontrast", "test_supcon", "test_a_pass_a_view_departs_from_it"),
        (
            Departure(
                "cifar10_csl has no factor T / 0.07",
                "four times its rate was worse in one short run",
                "method.loss_scale=0.5/0.07",
            ),
        ),
    ),
    Entry(
        "MoCo v2, non-semantic negatives",
        "Chen et al. 2020 (MoCo v2); Ge et al. 2021",
        "SongweiGe/Contrastive-Learning-with-Non-Semantic-Negatives",
        "cifar10_moco, cifar10_moco_patch",
        ("test_mocos_logits_are_the_published_ones",),
        (
            Departure(
                "keys of the query's own video in the queue are ignored",
                "they show the same video, so that they are not negatives",
            ),
        ),
    ),
    Entry(
        "False-negative removal",
        "Gupta et al. 2022",
        "the paper's description",
        "cifar10_csl_fnr, ucf101_csl_fnr",
        ("test_fixed_and_top_k_and_both",),
    ),
    Entry(
        "BYOL",
        "Grill et al. 2020",
        "the paper's formula",
        "cifar10_byol",
        ("test_byol_and_simsiam",),
    ),
    Entry(
        "SimSiam",
        "Chen and He 2021",
        "facebookresearch/simsiam@a7bc177",
        "cifar10_simsiam",
        ("test_byol_and_simsiam",),
    ),
    Entry(
        "VICReg",
        "Bardes et al. 2022",
        "facebookresearch/vicreg",
        "cifar10_vicreg",
        ("test_its_terms_are_the_papers",),
    ),
    Entry(
        "UEL and its CLAE",
        "Ye et al. 2019; Ho and Vasconcelos 2020",
        "chihhuiho/CLAE@6986061",
        "cifar10_uel",
        ("test_uel_and_its_attack",),
        (
            Departure(
                "eps is of pixels in [0, 1], and clips stay there",
                "the budgets of all methods have the same meaning",
                "method.adversary.faithful=true",
            ),
        ),
    ),
    Entry(
        "RoCL",
        "Kim et al. 2020",
        "Kim-Minseon/RoCL@b6d5185",
        "cifar10_rocl",
        ("test_rocl_and_its_asymmetric_variants",),
        (
            Departure(
                "the second view is embedded once in the attack, not at each step",
                "it does not change during the attack",
            ),
        ),
    ),
    Entry(
        "A-InfoNCE on RoCL",
        "Yu et al. 2022",
        "yqy2001/A-InfoNCE@b28763e",
        "cifar10_a_infonce",
        ("test_rocl_and_its_asymmetric_variants",),
    ),
    Entry(
        "ACL",
        "Jiang et al. 2020",
        "VITA-Group/Adversarial-Contrastive-Learning@399eabd",
        "cifar10_acl",
        ("test_acl_one_batch_of_both_views", "test_random_starts_stay_in_the_range_of_pixels"),
        (_START,),
    ),
    Entry(
        "DynACL",
        "Luo et al. 2023",
        "PKU-ML/DYNACL@7d143db",
        "cifar10_dynacl",
        ("test_dynacl_has_a_momentum_encoder_in_both_streams_and_in_the_attack",),
        (
            _START,
            Departure(
                "weight and augmentation change at the beginning of the same epoch",
                "in the released code the weight is one epoch of 1000 ahead of the augmentation",
            ),
        ),
    ),
    Entry(
        "AIR",
        "Xu et al. 2023",
        "GodXuxilie/Enhancing_ACL_via_AIR@15cf0a7",
        "cifar10_air",
        ("test_air",),
        (_START,),
    ),
    Entry(
        "AdvCL",
        "Fan et al. 2021",
        "LijieFan/AdvCL@24cb7a6",
        "cifar10_advcl",
        ("test_advcl",),
        (
            _START,
            _ATTACK_STATISTICS,
            Departure(
                "pseudo-labels come from a teacher that is trained without labels",
                "the released code uses a network trained with ImageNet's labels",
                "method.teacher=backbone.pt of any backbone",
            ),
        ),
    ),
    Entry(
        "TARO",
        "Kim et al. 2023",
        "Kim-Minseon/TARO@cc92930",
        "cifar10_taro",
        ("test_taro_on_simsiam", "test_taro_chooses_otherwise_in_eval_mode"),
        (
            Departure("the choice of targets does not update running statistics", "as for attacks"),
            Departure(
                "a clip is never its own target",
                "in the released code it may be, if all others point the opposite way",
            ),
        ),
    ),
    Entry(
        "DeACL",
        "Zhang et al. 2022",
        "pantheon5100/DeACL@3fb81e3",
        "cifar10_deacl",
        ("test_deacl", "test_random_starts_stay_in_the_range_of_pixels"),
        (_START,),
    ),
    Entry(
        "DynACL++",
        "Luo et al. 2023",
        "PKU-ML/DYNACL@7d143db",
        "cifar10_dynacl_pp",
        ("test_pseudo_labels_finetune_without_labels",),
        (
            Departure(
                "TRADES begins at random points, in the released code at the images themselves",
                "at the images the first gradient is 0 but for rounding",
                "method.adversary.start=clip",
            ),
        ),
    ),
    Entry(
        "FNC's rule",
        "Huynh et al. 2022",
        "google-research/fnc@adf5da5",
        "method.false_negatives.rule=topk_threshold",
        ("test_fixed_and_top_k_and_both",),
        (
            Departure(
                "the loss is the mean over anchors, in the released code twice that",
                "all contrastive losses of this package are means",
            ),
        ),
    ),
    Entry(
        "CLAE",
        "Ho and Vasconcelos 2020",
        "chihhuiho/CLAE@6986061",
        "cifar10_clae",
        ("test_clae_as_published",),
        (
            Departure(
                "without `faithful`: one pass in the attack, pixels in [0, 1]",
                "at x the two embeddings are equal: the same step for less",
                "method.adversary.faithful=true",
            ),
        ),
    ),
    Entry(
        "SLF, ALF, AFF",
        "Luo et al. 2023; Xu et al. 2023",
        "PKU-ML/DYNACL@7d143db, GodXuxilie/RobustSSL_Benchmark@19dc714",
        "protocols/slf, protocols/alf, protocols/aff",
        (
            "test_a_frozen_backbone_stays_bitwise_and_the_head_learns",
            "test_alf_is_its_formula",
            "test_trades_is_its_formula",
        ),
        (
            Departure(
                "the classifiers of ALF and AFF begin at a thousandth of random weights, in the"
                " released code at 0",
                "at 0 the first attack has no gradient",
                "model.head_scale=0",
            ),
            Departure(
                "TRADES of AFF begins at random points, in the released code at the images"
                " themselves",
                "at the images the first gradient is 0 but for rounding",
                "method.adversary.start=clip",
            ),
        ),
    ),
    Entry(
        "AutoLoRa",
        "Xu et al. 2024",
        "GodXuxilie/RobustSSL_Benchmark@19dc714",
        "protocols/lora",
        (
            "test_the_step_of_autolora_at_a_given_accuracy_is_the_released_one",
            "test_rates_and_weights_are_those_of_the_released_loop",
            "test_the_weights_of_the_loss_change_when_they_do_in_the_released_code",
        ),
        (
            Departure(
                "the accuracy that weighs the terms of the loss is that of the network with the"
                " branch, in the released code with one set of norms (`--dualBN 0`) that of the"
                " network without it",
                "the paper measures the branch, and so does the released code with `--dualBN 1`;"
                " with one set its `eval_test_nat` does not pass the branch on",
            ),
            Departure(
                "a run ends with the weights that were best on training videos, in the released"
                " code on the test split",
                "choosing on the split that is reported overestimates accuracy",
            ),
            Departure(
                "the attack begins at the clips, in the released code at 0.001 of normal noise from"
                " them",
                "other threat models have no such noise; the gradient at the clips is not 0",
                "method.adversary.start=random",
            ),
            Departure(
                "that accuracy is measured on the augmented clips of the epoch, in the released"
                " code on newly augmented ones, and once where the end of an epoch and the start of"
                " the next one coincide",
                "a resumed run must measure the same clips",
            ),
            Departure(
                "the classifier begins at a thousandth of random weights, in the released code at"
                " 0",
                "at 0 the first attack has no gradient",
                "model.head_scale=0",
            ),
        ),
    ),
    Entry(
        "Finetuning of transformers",
        "Tong et al. 2022",
        "MCG-NJU/VideoMAE@14ef8d8",
        "protocols/finetune_vit",
        (
            "test_layers_of_a_video_transformer_are_those_of_videomae",
            "test_the_rate_decays_to_its_last_value",
            "test_labels_of_mixed_clips_are_those_of_timm",
            "test_boxes_are_those_of_timm",
        ),
        (
            Departure(
                "a clip is mixed with its neighbour in the batch, in the released code with the"
                " clip at the mirrored place",
                "several ranks then mix the same pairs as one process",
            ),
            Departure(
                "boxes of an odd side keep it, as in timm now; in the released code they lose a"
                " pixel",
                "the area is that of the paper",
            ),
        ),
    ),
    Entry(
        "Attentive probe",
        "Bardes et al. 2024; Assran et al. 2025",
        "facebookresearch/jepa@51c59d5, facebookresearch/vjepa2@c2963a4",
        "protocols/attentive, protocols/attentive_vjepa2",
        (
            "test_its_logits_are_those_of_loops",
            "test_its_initial_weights_are_scaled_as_released",
            "test_it_has_the_parameters_of_the_released_classifiers",
        ),
        (
            Departure(
                "the probe attends to the tokens of one clip, in V-JEPA's code to those of 8 clips",
                "models and attacks take clips; a video's clips are averaged",
            ),
            Departure(
                "one probe is trained, in V-JEPA 2's code 20, of which the best is reported",
                "choosing on the split that is reported overestimates accuracy",
            ),
        ),
    ),
    Entry(
        "PGD, fast, free, TRADES",
        "Madry 2018; Wong 2020; Shafahi 2019; Zhang 2019",
        "locuslab/fast_adversarial, ashafahi/free_adv_train, yaodongyu/TRADES",
        "cifar10_pgd, cifar10_fast, cifar10_free, cifar10_trades",
        (
            "test_pgd_training_is_cross_entropy_of_adversarial_clips",
            "test_fast_training_is_its_formula",
            "test_trades_is_its_formula",
            "test_free_training_moves_the_perturbation_with_the_gradient_of_the_step",
        ),
        (
            _ATTACK_STATISTICS,
            Departure(
                "free begins each batch at a new random point, the released code at the"
                " perturbation of the last batch",
                "the last batch has other clips",
            ),
            Departure(
                "PGD training attacks in eval mode, fast_adversarial in training mode",
                "Madry et al. 2018 attack in eval mode",
            ),
        ),
    ),
)

_HEAD = """# Fidelity: do methods agree with their authors' code?

Yes, step by step, apart from the departures below. BYOL, VICReg and false-negative removal are
compared with the formulas of their papers. This page is generated from
`vidrobust/methods/fidelity.py` by `python tools/document.py`.

How it is tested (`tests/methods/reference/`):

- One step is compared with a step written anew from the description of the released code, in
  double precision, on clips of four frames and on images.
- Tolerances: the loss 1e-9; all signs of the adversarial clips equal; gradient, one optimizer step
  (LARS or SGD as in the code) and running statistics 1e-7.
- Three departures are asserted with their size: a pass per view, and the running statistics that
  AdvCL's attack and TARO's choice of targets update in the released code.
- CLAE, PGD, fast and TRADES are compared with their formulas in other tests, losses to 1e-6. FNC's
  rule is compared with a loop. DynACL++ and free have tests of their behaviour.
- The formulas of A-InfoNCE, AIR, SupContrast, UEL, AdvCL's filter and TARO's choice were also run
  next to the released functions: losses agree to 1e-6 (RoCL and A-InfoNCE add 1e-8 inside of
  logarithms) or in all digits.

Where a recipe deviates from the released script, its config file says so next to the value.

| method | paper | code that was read | config file | departures |
|---|---|---|---|---|
"""


def document() -> str:
    """Return docs/fidelity.md."""
    lines = [_HEAD.rstrip("\n")]
    for entry in ENTRIES:
        count = len(entry.departures) or "none"
        lines.append(
            f"| {entry.method} | {entry.paper} | {entry.code} | {entry.config} | {count} |"
        )
    lines += ["", "## Departures", "", "| method | what | why | option |", "|---|---|---|---|"]
    for entry in ENTRIES:
        for each in entry.departures:
            option = f"`{each.option}`" if each.option else ""
            lines.append(f"| {entry.method} | {each.what} | {each.why} | {option} |")
    lines += ["", "## Tests", "", "| method | tests |", "|---|---|"]
    lines += [f"| {e.method} | {', '.join(f'`{test}`' for test in e.tests)} |" for e in ENTRIES]
    return "\n".join(lines) + "\n"
