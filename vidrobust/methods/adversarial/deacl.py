"""DeACL: a robust student of a clean teacher (Zhang et al., ECCV 2022). `Distill` has its loss."""

from vidrobust.methods.spec import AdversarySpec, Cost, branch_per_threat_only

SPEC = AdversarySpec(
    help="DeACL: a student of a clean teacher, robust to attacks away from it",
    costs={"": Cost(forward=1, attack=1, learned=(2,))},
    options=frozenset({"gamma"}),
    # 5 steps of 2/255 within 8/255, as in the released code
    steps=5,
    step=0.25,
    random_start=True,
    branches=branch_per_threat_only,
)
