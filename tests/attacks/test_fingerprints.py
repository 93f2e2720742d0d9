"""Compare attacks with their fingerprints: two numbers per threat, which any change alters.

The attacks run in double precision, so that the lowest and the newest supported versions of torch
give the same numbers. The numbers were recorded after the attacks had been compared with published
code (test_agreement.py, test_published_constants.py).
"""

import inspect
import warnings

import pytest
import torch
from torch.nn import functional as F

from tests.attacks.helpers import seeded
from vidrobust.attacks import ATTACKS, MINIMUM_NORM, Misclassify, contains, parse_threat

# attack -> threat -> the mean change of a value, and the mean weighted by the value's position
FINGERPRINTS = {
    "fgsm": {
        "patch4-linf-0.3": (0.02805067, -9.674739e-05),
        "linf-8/255": (0.02899917, -0.0005457604),
        "l2-1": (0.01751725, -0.0003738966),
        "l1-12": (0.006944444, -0.0005949523),
        "l2_frame-0.6": (0.02129806, -0.0002147765),
        "flicker-linf-0.2": (0.1702716, -0.03082242),
        "tube-l2-1": (0.01752045, -0.0006589114),
        "frames2-linf-0.1": (0.04483602, -0.002587108),
        "patch4-l2-2": (0.01219892, -0.0002982113),
        "pixels20-linf-0.5": (0.04895013, -0.005041836),
        "border2-linf-0.2": (0.09250253, 0.001466277),
    },
    "pgd": {
        "patch4-linf-0.3": (0.01900697, 0.0001029564),
        "linf-8/255": (0.02141011, -0.0004606405),
        "l2-1": (0.0184282, 9.224891e-05),
        "l1-12": (0.006944444, -0.0005385924),
        "l2_frame-0.6": (0.02234185, 0.0002204944),
        "flicker-linf-0.2": (0.1250246, 0.008817307),
        "tube-l2-1": (0.01794259, -0.0003458409),
        "frames2-linf-0.1": (0.02777292, -0.0008393751),
        "patch4-l2-2": (0.01231532, -6.587886e-05),
        "pixels20-linf-0.5": (0.02990478, -0.00244796),
        "border2-linf-0.2": (0.05278814, -0.0001303587),
    },
    "mim": {
        "patch4-linf-0.3": (0.01486669, 0.0002170981),
        "linf-8/255": (0.02000023, -0.0003161793),
        "l2-1": (0.01080062, -0.0001807345),
        "l1-12": (0.004340278, 5.52309e-05),
        "l2_frame-0.6": (0.01136499, 1.490503e-05),
        "flicker-linf-0.2": (0.1132359, -0.01870679),
        "tube-l2-1": (0.01384446, -0.0004316436),
        "frames2-linf-0.1": (0.01690603, -0.0008457603),
        "patch4-l2-2": (0.00902285, -0.0001304714),
        "pixels20-linf-0.5": (0.01489088, -0.001185162),
        "border2-linf-0.2": (0.02830549, 0.0004223948),
    },
    "apgd-ce": {
        "patch4-linf-0.3": (0.02815381, -5.987171e-05),
        "linf-8/255": (0.02899228, -0.0005548451),
        "l2-1": (0.0180053, -0.0001624861),
        "l1-12": (0.006944444, -0.0002008053),
        "l2_frame-0.6": (0.02175307, -1.384412e-05),
        "flicker-linf-0.2": (0.1464576, 0.005307057),
        "tube-l2-1": (0.01775056, -0.0007331786),
        "frames2-linf-0.1": (0.03907801, -0.001885402),
        "patch4-l2-2": (0.01262146, -0.0002739812),
        "pixels20-linf-0.5": (0.0492092, -0.004621058),
        "border2-linf-0.2": (0.08096904, 0.002190265),
    },
    "apgd-dlr": {
        "patch4-linf-0.3": (0.02815381, -5.987171e-05),
        "linf-8/255": (0.02899228, -0.0005548451),
        "l2-1": (0.0180053, -0.0001624861),
        "l1-12": (0.006944444, -0.0002008053),
        "l2_frame-0.6": (0.02175307, -1.384412e-05),
        "flicker-linf-0.2": (0.1464576, 0.005307057),
        "tube-l2-1": (0.01775056, -0.0007331786),
        "frames2-linf-0.1": (0.03907801, -0.001885402),
        "patch4-l2-2": (0.01262146, -0.0002739812),
        "pixels20-linf-0.5": (0.0492092, -0.004621058),
        "border2-linf-0.2": (0.08096904, 0.002190265),
    },
    "apgd-t": {
        "patch4-linf-0.3": (0.02346884, -0.0006005874),
        "linf-8/255": (0.02893504, -0.000537922),
        "l2-1": (0.01797877, -5.974332e-05),
        "l1-12": (0.006944444, 0.0002274805),
        "l2_frame-0.6": (0.02168261, 5.801041e-05),
        "flicker-linf-0.2": (0.14559, 0.01668901),
        "tube-l2-1": (0.01768019, -0.0005322978),
        "frames2-linf-0.1": (0.03879553, -0.001086562),
        "patch4-l2-2": (0.01239334, -0.0004081403),
        "pixels20-linf-0.5": (0.04605745, -1.516617e-05),
        "border2-linf-0.2": (0.08063717, 0.002368455),
    },
    "fab": {
        "patch4-linf-0.3": (0.01082203, 0.001338873),
        "linf-8/255": (0.01460806, -0.0002123807),
        "l2-1": (0.008363342, -0.0001061572),
        "l1-12": (0.003024102, 0.0001136168),
        "flicker-linf-0.2": (0.05954139, -0.01519194),
        "tube-l2-1": (0.004523286, -0.0001506067),
        "frames2-linf-0.1": (0.01254459, -0.0005624192),
        "patch4-l2-2": (0.006869843, 0.001028431),
        "pixels20-linf-0.5": (0.007513883, -0.0005311173),
        "border2-linf-0.2": (0.01792964, 0.0005083737),
    },
    "fab-t": {
        "patch4-linf-0.3": (0.01082203, 0.001338873),
        "linf-8/255": (0.01460806, -0.0002123807),
        "l2-1": (0.008363342, -0.0001061572),
        "l1-12": (0.003024102, 0.0001136168),
        "flicker-linf-0.2": (0.06696397, -0.01751507),
        "tube-l2-1": (0.004523286, -0.0001506067),
        "frames2-linf-0.1": (0.01254459, -0.0005624192),
        "patch4-l2-2": (0.006869843, 0.001028431),
        "pixels20-linf-0.5": (0.007513883, -0.0005311173),
        "border2-linf-0.2": (0.01792964, 0.0005083737),
    },
    "fmn": {
        "patch4-linf-0.3": (0.007907381, 0.000987972),
        "linf-8/255": (0.01218113, -0.0001887303),
        "l2-1": (0.008397508, -0.0001061605),
        "l1-12": (0.00444435, -0.0003100215),
        "l2_frame-0.6": (0.008666654, -4.208901e-05),
        "flicker-linf-0.2": (0.06004431, -0.01374019),
        "tube-l2-1": (0.004523286, -0.0001506067),
        "frames2-linf-0.1": (0.01023781, -0.0005255051),
        "patch4-l2-2": (0.006871876, 0.0009266924),
        "pixels20-linf-0.5": (0.006763745, -0.0004537462),
        "border2-linf-0.2": (0.01356289, 0.0008415255),
    },
    "cw": {
        "l2-1": (0.003481924, -0.0001040279),
        "tube-l2-1": (0.001921053, -0.0001597338),
        "patch4-l2-2": (0.0002478944, -1.792029e-05),
    },
    "square": {
        "patch4-linf-0.3": (0.02829637, -0.003448699),
        "linf-8/255": (0.02905981, -0.008250099),
        "l2-1": (0.01497357, -0.001040911),
        "l1-12": (0.006944444, 0.0005767002),
        "l2_frame-0.6": (0.01864571, -0.0004085381),
        "flicker-linf-0.2": (0.1718003, 0.03422333),
        "tube-l2-1": (0.01429549, 0.0003950791),
        "frames2-linf-0.1": (0.04464639, 0.008385797),
        "patch4-l2-2": (0.01163682, -0.001066083),
        "pixels20-linf-0.5": (0.04913766, 0.006431419),
        "border2-linf-0.2": (0.09544157, 0.03595904),
    },
    "nes": {
        "patch4-linf-0.3": (0.01805366, -0.002737029),
        "linf-8/255": (0.01939011, -0.0001812262),
        "l2-1": (0.01684489, -0.0002148017),
        "l1-12": (0.005736715, -0.0004724599),
        "l2_frame-0.6": (0.01959975, -9.852617e-05),
        "flicker-linf-0.2": (0.1182891, -0.003138788),
        "tube-l2-1": (0.01675349, -0.0003071722),
        "frames2-linf-0.1": (0.02811036, -0.0003541845),
        "patch4-l2-2": (0.01035974, -0.001464846),
        "pixels20-linf-0.5": (0.0331038, -0.0008471299),
        "border2-linf-0.2": (0.06717344, -0.0001361361),
    },
    "geo-trap": {
        "patch4-linf-0.3": (0.02086688, -0.004217589),
        "linf-8/255": (0.02734777, -0.0005898385),
        "l2-1": (0.01358815, -0.001024144),
        "l1-12": (0.0003399884, -4.658101e-05),
        "l2_frame-0.6": (0.0196873, -0.001377426),
        "flicker-linf-0.2": (0.1581359, -0.04780439),
        "tube-l2-1": (0.01346137, -0.001352204),
        "frames2-linf-0.1": (0.04053066, 0.001496886),
        "patch4-l2-2": (0.004717961, -0.00033424),
        "pixels20-linf-0.5": (0.03484731, -0.003021645),
        "border2-linf-0.2": (0.08311952, -0.001587862),
    },
    "temporal-translation": {
        "patch4-linf-0.3": (0.02751925, -0.0001433477),
        "linf-8/255": (0.02889278, -0.0002937831),
        "l2-1": (0.01776742, -0.0005479184),
        "l1-12": (0.006944444, 0.0006614671),
        "l2_frame-0.6": (0.02130417, -0.0006624049),
        "flicker-linf-0.2": (0.1625515, -0.003359914),
        "tube-l2-1": (0.01763229, -0.0005676633),
        "frames2-linf-0.1": (0.04413751, -0.0008535542),
        "patch4-l2-2": (0.01227607, -0.0005729019),
        "pixels20-linf-0.5": (0.04997517, -0.001475059),
        "border2-linf-0.2": (0.09123847, 0.00332385),
    },
    "frame-saliency": {
        "linf-8/255": (0.01780951, -0.0004702429),
        "l2-1": (0.009188888, -0.0006947612),
        "l1-12": (0.005353009, -0.0004481087),
        "l2_frame-0.6": (0.009867079, -0.0005167334),
    },
    "one-frame": {
        "linf-8/255": (0.006388812, -0.0001855208),
        "l2-1": (0.009018392, -0.0002933199),
        "l1-12": (0.006944444, -0.001473624),
        "l2_frame-0.6": (0.005401481, -0.0002026358),
    },
    "sparse": {
        "patch4-linf-0.3": (0.0006107964, -1.538592e-05),
        "linf-8/255": (0.004539079, -8.175841e-05),
        "l2-1": (0.004535594, -4.71665e-05),
        "l1-12": (0.004480661, -7.10155e-05),
        "l2_frame-0.6": (0.004535594, -4.71665e-05),
        "flicker-linf-0.2": (0.005573304, -0.0008714174),
        "tube-l2-1": (0.004863592, -6.373329e-05),
        "frames2-linf-0.1": (0.00240198, -0.0001336438),
        "patch4-l2-2": (0.0006176636, -5.48587e-06),
        "pixels20-linf-0.5": (0.0007691232, -7.599432e-05),
        "border2-linf-0.2": (0.002538561, 3.565729e-05),
    },
    "flicker": {
        "flicker-linf-0.2": (0.04355286, -0.007862412),
    },
    "roa": {
        "patch4-linf-0.3": (0.0226125, 0.002203788),
    },
    "salt-and-pepper": {
        "pixels20-linf-0.5": (0.01260317, -0.00532436),
    },
}
# few steps, as every one of them counts in the fingerprint
OPTIONS = {"steps": 6, "queries": 120, "restarts": 2, "samples": 4, "searches": 2, "targets": 3}


@pytest.fixture(scope="module")
def problem():
    """Return a small network of fixed random weights, and clips with black and white bars."""
    generator = seeded(3)
    kernels = torch.randn(8, 3, 2, 3, 3, generator=generator, dtype=torch.float64) / 7
    head = torch.randn(5, 8 * 3 * 10 * 10, generator=generator, dtype=torch.float64) / 40

    def predict(x):
        return F.conv3d(x.double(), kernels).tanh().flatten(1) @ head.T

    x = torch.rand(4, 3, 4, 12, 12, generator=seeded(5), dtype=torch.float64)
    # bars at 0 and 1, so that clipping counts too
    x[0, :, :, :3] = 0
    x[1, :, :, :, 9:] = 1
    return predict, x, predict(x).argmax(1)


def test_every_attack_has_a_fingerprint():
    assert ATTACKS.keys() == FINGERPRINTS.keys()


def _cases():
    for name, fingerprints in FINGERPRINTS.items():
        for threat in fingerprints:
            yield name, threat


@pytest.mark.parametrize(("name", "text"), _cases())
def test_an_attack_gives_the_numbers_of_its_fingerprint(problem, name, text):
    predict, x, y = problem
    threat, attack = parse_threat(text), ATTACKS[name]
    parameters = inspect.signature(attack).parameters
    options = {key: value for key, value in OPTIONS.items() if key in parameters}
    if "generator" in parameters:
        options["generator"] = seeded(7)
    loss = Misclassify(predict, y, "margin" if name in MINIMUM_NORM else "ce")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradients of 0
        delta = attack(loss, x, threat, **options) - x
    assert contains(threat, x, x + delta).all() or name in MINIMUM_NORM
    # the weights differ from value to value, so that a moved change is noticed
    place = torch.linspace(0.5, 1.5, delta.numel(), dtype=torch.float64).view_as(delta)
    fingerprint = float(delta.abs().mean()), float((delta * place).mean())
    assert fingerprint == pytest.approx(FINGERPRINTS[name][text], rel=1e-3, abs=1e-9)
