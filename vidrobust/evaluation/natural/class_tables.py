"""Tables of classes that mean the same in two data sets, for classes whose names differ.

Classes of equal names, apart from case and punctuation, need no entry. A concept may have several
classes on either side.
"""

from torchvision.models.video import R3D_18_Weights

# Kinetics-400 in alphabetical order, in which files of weights have it
KINETICS: tuple[str, ...] = tuple(R3D_18_Weights.KINETICS400_V1.meta["categories"])

# concept -> (its classes in one data set, its classes in the other)
Table = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

# UCF101, HMDB51: the twelve concepts of UCF-HMDB full (Chen et al. 2019), and two added here, dive
# and handstand.
UCF_HMDB: Table = {
    "climb": (("RockClimbingIndoor", "RopeClimbing"), ("climb",)),
    "fencing": (("Fencing",), ("fencing",)),
    "golf": (("GolfSwing",), ("golf",)),
    "kick_ball": (("SoccerPenalty",), ("kick_ball",)),
    "pullup": (("PullUps",), ("pullup",)),
    "punch": (("Punch", "BoxingPunchingBag", "BoxingSpeedBag"), ("punch",)),
    "pushup": (("PushUps",), ("pushup",)),
    "ride_bike": (("Biking",), ("ride_bike",)),
    "ride_horse": (("HorseRiding",), ("ride_horse",)),
    "shoot_ball": (("Basketball",), ("shoot_ball",)),
    "shoot_bow": (("Archery",), ("shoot_bow",)),
    "walk": (("WalkingWithDog",), ("walk",)),
    "dive": (("Diving", "CliffDiving"), ("dive",)),
    "handstand": (("HandstandPushups", "HandstandWalking"), ("handstand",)),
}

_BIKE = ("riding a bike", "biking through snow", "riding mountain bike")

# Kinetics-400, UCF101. It contains the pairs of Viarow/kinetics-i3d, data/common_classes.py (whose
# number for HighJump is off by one), and others that the names decide.
KINETICS_UCF: Table = {
    "baby_crawling": (("crawling baby",), ("BabyCrawling",)),
    "basketball": (("shooting basketball", "playing basketball"), ("Basketball",)),
    "basketball_dunk": (("dunking basketball",), ("BasketballDunk",)),
    "bench_press": (("bench pressing",), ("BenchPress",)),
    "biking": (_BIKE, ("Biking",)),
    "blowing_candles": (("blowing out candles",), ("BlowingCandles",)),
    "squat": (("squat",), ("BodyWeightSquats",)),
    "punching_bag": (("punching bag",), ("BoxingPunchingBag",)),
    "punch": (("punching person (boxing)",), ("Punch",)),
    "breast_stroke": (("swimming breast stroke",), ("BreastStroke",)),
    "cliff_diving": (("diving cliff",), ("CliffDiving",)),
    "cricket": (("playing cricket",), ("CricketBowling", "CricketShot")),
    "diving": (("springboard diving",), ("Diving",)),
    "drumming": (("playing drums",), ("Drumming",)),
    "floor_gymnastics": (("gymnastics tumbling",), ("FloorGymnastics",)),
    "frisbee": (("catching or throwing frisbee",), ("FrisbeeCatch",)),
    "golf": (("golf driving", "golf chipping"), ("GolfSwing",)),
    "haircut": (("getting a haircut",), ("Haircut",)),
    "head_massage": (("massaging person's head",), ("HeadMassage",)),
    "horse_riding": (("riding or walking with horse",), ("HorseRiding",)),
    "hula_hoop": (("hula hooping",), ("HulaHoop",)),
    "ice_dancing": (("ice skating",), ("IceDancing",)),
    "jump_rope": (("skipping rope",), ("JumpRope",)),
    "kayaking": (("canoeing or kayaking",), ("Kayaking",)),
    "lunges": (("lunge",), ("Lunges",)),
    "marching": (("marching",), ("MilitaryParade", "BandMarching")),
    "push_ups": (("push up",), ("PushUps",)),
    "rock_climbing": (("rock climbing",), ("RockClimbingIndoor",)),
    "rope_climbing": (("climbing a rope",), ("RopeClimbing",)),
    "salsa": (("salsa dancing",), ("SalsaSpin",)),
    "shaving_beard": (("trimming or shaving beard",), ("ShavingBeard",)),
    "skiing": (
        ("skiing (not slalom or crosscountry)", "skiing slalom", "skiing crosscountry"),
        ("Skiing",),
    ),
    "jet_ski": (("jetskiing",), ("Skijet",)),
    "soccer_juggling": (("juggling soccer ball",), ("SoccerJuggling",)),
    "soccer_penalty": (("shooting goal (soccer)", "kicking soccer ball"), ("SoccerPenalty",)),
    "wrestling": (("wrestling",), ("SumoWrestling",)),
    "surfing": (("surfing water",), ("Surfing",)),
    "swing": (("swinging on something",), ("Swing",)),
    "tennis": (("playing tennis",), ("TennisSwing",)),
    "throw_discus": (("throwing discus",), ("ThrowDiscus",)),
    "trampoline": (("bouncing on trampoline",), ("TrampolineJumping",)),
    "volleyball": (("playing volleyball",), ("VolleyballSpiking",)),
    "walk_dog": (("walking the dog",), ("WalkingWithDog",)),
}

# Kinetics-400, HMDB51. It contains the pairs of ActionBiasBench,
# scripts/eval_pahmdb51_zero_shot.py, except those that it merges (draw_sword, fencing and
# sword_exercise with sword), and others that the names decide.
KINETICS_HMDB: Table = {
    "brush_hair": (("brushing hair",), ("brush_hair",)),
    "cartwheel": (("cartwheeling",), ("cartwheel",)),
    "clap": (("clapping", "applauding"), ("clap",)),
    "climb": (("rock climbing", "climbing a rope"), ("climb",)),
    "dive": (("springboard diving", "diving cliff"), ("dive",)),
    "dribble": (("dribbling basketball",), ("dribble",)),
    "drink": (("drinking", "drinking beer", "drinking shots"), ("drink",)),
    "eat": (
        (
            "eating burger",
            "eating cake",
            "eating carrots",
            "eating chips",
            "eating doughnuts",
            "eating hotdog",
            "eating ice cream",
            "eating spaghetti",
            "eating watermelon",
        ),
        ("eat",),
    ),
    "golf": (("golf driving", "golf chipping", "golf putting"), ("golf",)),
    "hug": (("hugging",), ("hug",)),
    "kick_ball": (("kicking soccer ball", "shooting goal (soccer)"), ("kick_ball",)),
    "kiss": (("kissing",), ("kiss",)),
    "laugh": (("laughing",), ("laugh",)),
    "pullup": (("pull ups",), ("pullup",)),
    "punch": (("punching person (boxing)", "punching bag"), ("punch",)),
    "push": (("pushing car", "pushing cart", "pushing wheelchair"), ("push",)),
    "pushup": (("push up",), ("pushup",)),
    "ride_bike": (_BIKE, ("ride_bike",)),
    "ride_horse": (("riding or walking with horse",), ("ride_horse",)),
    "run": (("jogging", "running on treadmill"), ("run",)),
    "shake_hands": (("shaking hands",), ("shake_hands",)),
    "shoot_ball": (("shooting basketball",), ("shoot_ball",)),
    "shoot_bow": (("archery",), ("shoot_bow",)),
    "smoke": (("smoking", "smoking hookah"), ("smoke",)),
    "somersault": (("somersaulting",), ("somersault",)),
    "swing_baseball": (("hitting baseball",), ("swing_baseball",)),
    "sword": (("sword fighting",), ("sword",)),
    "throw": (("throwing ball",), ("throw",)),
    "walk": (("walking the dog",), ("walk",)),
}

TABLES: tuple[Table, ...] = (UCF_HMDB, KINETICS_UCF, KINETICS_HMDB)
