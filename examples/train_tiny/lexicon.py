"""Word lists, pseudo-words and the split that keeps held-out items away from training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

HELD_OUT_SHARE = 10


def _words(table: str) -> tuple[str, ...]:
    return tuple(table.split())


def _pairs(table: str) -> dict[str, str]:
    entries = (" ".join(entry.split()).split(": ") for entry in table.split("|"))
    return {key: value for key, value in entries}


CAPITALS: dict[str, str] = _pairs(
    """
    France: Paris | Germany: Berlin | Italy: Rome | Spain: Madrid | Portugal: Lisbon | Austria: Vienna |
    Belgium: Brussels | Denmark: Copenhagen | Norway: Oslo | Sweden: Stockholm | Finland: Helsinki | Poland:
    Warsaw | Hungary: Budapest | Greece: Athens | Ireland: Dublin | Iceland: Reykjavik | Russia: Moscow |
    Ukraine: Kyiv | Turkey: Ankara | Romania: Bucharest | Bulgaria: Sofia | Croatia: Zagreb | Serbia:
    Belgrade | England: London | Scotland: Edinburgh | Switzerland: Bern | Japan: Tokyo | China: Beijing |
    India: New Delhi | Thailand: Bangkok | Vietnam: Hanoi | Indonesia: Jakarta | Philippines: Manila | South
    Korea: Seoul | Iran: Tehran | Iraq: Baghdad | Egypt: Cairo | Kenya: Nairobi | Ethiopia: Addis Ababa |
    Morocco: Rabat | Ghana: Accra | Nigeria: Abuja | Canada: Ottawa | Cuba: Havana | Peru: Lima | Chile:
    Santiago | Argentina: Buenos Aires | Brazil: Brasilia | Colombia: Bogota | Australia: Canberra
    """
)

UNKNOWN_PLACES = _words(
    """
    Atlantis Narnia Wakanda Mordor Gondor Oz Utopia Zorbia Florin Arendelle Elbonia Genovia Lilliput
    Ruritania Sokovia Freedonia Nepal Mali Laos Oman Togo Chad Fiji Malta Cyprus
    """
)

WORDS = _words(
    """
    cat dog bird fish horse mouse tiger lion bear wolf fox rabbit snake frog duck goose sheep goat pig cow
    apple banana orange lemon cherry grape melon peach pear plum mango strawberry blueberry raspberry olive
    bread butter cheese milk water coffee tea sugar salt pepper honey rice pasta soup salad potato tomato
    carrot onion garlic cabbage pumpkin mushroom sandwich cookie chocolate vanilla cinnamon breakfast dinner
    house window door table chair lamp bed sofa kitchen garden roof wall floor ceiling mirror carpet curtain
    pillow blanket candle clock bottle glass cup plate spoon fork knife bowl basket bucket ladder hammer
    nail saw rope chain wheel engine car bus train plane boat ship bicycle truck tractor rocket bridge road
    street river lake ocean sea island beach mountain hill valley forest desert field meadow tree flower
    leaf root branch grass stone rock sand mud cloud rain snow storm thunder lightning wind sun moon star
    planet comet galaxy universe world earth fire smoke ice light shadow morning evening night summer winter
    autumn spring season calendar monday tuesday friday sunday january april august october music guitar
    piano violin trumpet drum song dance theatre movie picture painting camera paper pencil pen book letter
    library school teacher student doctor nurse farmer baker driver pilot soldier sailor king queen prince
    princess castle tower village city country market shop museum hospital church station airport hotel
    restaurant office computer keyboard monitor printer phone internet program python compiler tensor model
    token engineer science physics chemistry biology history geography mathematics number circle square
    triangle corner center north south east west left right money coin bank ticket present birthday party
    balloon puppet doll toy game ball puzzle chess card dice jacket shirt trousers dress skirt shoe boot hat
    scarf glove belt button pocket zipper needle thread cotton wool silk leather metal iron silver gold
    copper diamond crystal pearl ruby emerald happy lonely brave clever gentle quiet loud bright dark heavy
    empty narrow famous ancient modern simple purple yellow green orange silver hello goodbye please thanks
    welcome friend brother sister mother father daughter cousin uncle aunt baby child giant dragon wizard
    witch ghost monster robot pirate treasure secret mystery adventure journey holiday weekend elephant
    giraffe penguin dolphin octopus squirrel hedgehog kangaroo crocodile butterfly spider beetle ant bee
    mississippi banana committee balloon parallel bookkeeper language inference engine quire letter lamp
    window level radar noon kayak civic mirror stream planet jungle rhythm zebra quartz jazz fizz buzz
    umbrella volcano waterfall whisper yogurt xylophone zucchini notebook nothing something anything
    """
)

COMMON = _words(
    """
    the and that this word letter letters text name what which where when how who many much often time times
    long capital country city sum number reverse spell repeat replace change count write read say tell give
    show add subtract compute calculate answer question help thank thanks hello hi bye good nice big small
    old next first second before after under near home day years hours euros cents children people found
    went came bought gave wanted liked never every nobody about with from into out again instead case upper
    backwards reversed spelled favourite colour food pet user assistant system helpful friendly pizza
    noodles apples cake curry parrot turtle
    """
)

NAMES = _words(
    """
    Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nina Oscar Paula Quinn Rosa Sam Tom
    Uma Victor Wendy Xavier Yara Zoe Alice Bob Carol Daniel Elena Frank Greta Hugo Ivan Julia Karl Laura
    Martin Nora Oliver Peter Rachel Simon Tina Ursula Vera Walter Yusuf Zara Adam Bella Chris Diana Edgar
    Fiona George Hannah Isaac Jane Kevin Lucy Max Naomi Otto Petra Rita Stefan Theo Viola Amir Bianca Cedric
    Dora Eric Farah Gina Hassan Ines Jonas Kira Liam Mona Noah Olga Pablo Ruth Sven Tara Umar Vince Will
    Yuki Ada Alan Grace Linus Sarah John Mary James Robert Linda Susan Thomas Nancy Lisa Mark Paul Steven
    Andrew Emily Joshua Amanda Melissa Deborah Ryan Jacob Gary Sofia Mateo Lucas Mia Ethan Chloe Amelia Ravi
    Priya Arjun Mei Wei Chen Hiro Aiko Kenji Fatima Omar Layla Ahmed Ingrid Lars Astrid Bjorn Pierre Camille
    """
)

COLOURS = _words(
    """
    red blue green yellow purple orange pink brown black white silver gold grey violet
    """
)
FOODS = _words(
    """
    pizza pasta rice soup bread cheese salad cake fish apples noodles chocolate curry sushi
    """
)
PETS = _words(
    """
    dog cat rabbit parrot hamster horse goldfish turtle
    """
)

_ONSETS = _words(
    """
    b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn sp st str
    th tr tw wh x
    """
)
_VOWELS = _words(
    """
    a e i o u a e i o u ai au ea ee ie oa oo ou y
    """
)
_CODAS = _words(
    """
    b d f g k l m n p r s t x ck ll ld mp nd ng nk nt rd rk rn rt sh ss st tch th
    """
)


def held_out(kind: str, key: str) -> bool:
    """Whether an item belongs to the evaluation only; a fixed hash decides, one in ten is held out."""
    digest = hashlib.blake2b(f"{kind}:{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def pair_held_out(first: int, second: int) -> bool:
    """Whether a pair of operands is held out, in both orders and for both operations."""
    return held_out("pair", f"{min(first, second)},{max(first, second)}")


def pick(rng: Random, kind: str, pool: Sequence[str], evaluation: bool) -> str:
    """Picks an item of ``pool`` from the training or the evaluation side of the split."""
    while True:
        item = rng.choice(pool)
        if held_out(kind, item.lower()) == evaluation:
            return item


def _coin_pseudo_word(rng: Random) -> str:
    if rng.random() < 0.25:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
    word = ""
    for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))):
        word += rng.choice(_ONSETS) + rng.choice(_VOWELS)
        if rng.random() < 0.35:
            word += rng.choice(_CODAS)
    return word[:14]


def pseudo_word(rng: Random, evaluation: bool) -> str:
    """Coins a word that is not in ``WORDS``, from the wanted side of the split."""
    while True:
        word = _coin_pseudo_word(rng)
        if len(word) > 1 and held_out("word", word) == evaluation:
            return word


def some_word(rng: Random, evaluation: bool, real_share: float = 0.4) -> str:
    """Picks a real word or coins one."""
    if rng.random() < real_share:
        if not evaluation and rng.random() < 0.25:
            return pick(rng, "word", (*COMMON, *COLOURS, *CAPITALS), evaluation)
        return pick(rng, "word", WORDS, evaluation)
    return pseudo_word(rng, evaluation)


def some_name(rng: Random, evaluation: bool, real_share: float = 0.6) -> str:
    """Picks a first name or coins one."""
    if rng.random() < real_share:
        return pick(rng, "name", NAMES, evaluation)
    while True:
        name = _coin_pseudo_word(rng)[:9].capitalize()
        if len(name) > 2 and held_out("name", name.lower()) == evaluation:
            return name
