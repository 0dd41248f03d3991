"""The words of the demo's world: common English, first names, places, and sentences made of them."""

from __future__ import annotations

import random

from training.lexicon import Lexicon


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = (
    "cat", "dog", "horse", "bird", "fish", "cow", "bear", "mouse", "duck", "sheep", "rabbit", "fox", "wolf", "lion",
)  # fmt: skip
FOODS = (
    "bread", "cheese", "soup", "rice", "pasta", "pizza", "salad", "chicken", "fish", "coffee", "tea", "milk", "cake",
    "chocolate", "honey", "sugar", "butter", "beer", "wine", "fruit", "juice", "meat", "beans",
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "orange", "purple", "pink", "grey", "gold")
JOBS = (
    "teacher", "doctor", "driver", "writer", "artist", "lawyer", "farmer", "nurse", "engineer", "chef", "student",
    "designer", "manager", "actor", "painter", "singer", "baker", "judge", "pilot", "scientist",
)  # fmt: skip
COUNTRIES = (
    "France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Mexico", "Egypt", "Norway",
    "Sweden", "Poland", "Greece", "Ireland", "Portugal", "Austria", "Kenya", "Peru",
)  # fmt: skip
LANGUAGES = ("French", "German", "Spanish", "Italian", "Dutch", "Polish", "Japanese", "English", "Russian", "Greek")
NAMES = _split(
    """Adam Alan Alex Alexander Alice Amanda Amy Andrea Andrew Angela Ann Anna Anne Anthony Antonio Arthur Barbara
    Ben Benjamin Bill Billy Bob Brian Bruce Carl Carlos Carol Caroline Catherine Charles Charlie Charlotte Chris
    Christian Christina Christine Claire Clara Daniel Dave David Dennis Diana Diego Don Donald Dorothy Doug Ed Eddie
    Edward Elena Elizabeth Ellen Emily Emma Eric Erik Eva Evan Frank Fred Gary George Grace Graham Greg Hannah Harry
    Heather Helen Henry Howard Hugh Ian Isabel Jack Jackson Jacob James Jamie Jan Jane Jason Jay Jean Jeff Jennifer
    Jeremy Jerry Jessica Jim Jimmy Joan Joe John Johnny Jon Jonathan Jordan Jose Joseph Josh Joshua Juan Julia Julian
    Julie Justin Karen Karl Kate Katie Keith Kelly Ken Kevin Kim Kyle Larry Laura Lauren Lee Leo Leon Lewis Linda Lisa
    Louis Lucas Lucy Luis Luke Marc Marco Marcus Margaret Maria Marie Mario Mark Martin Mary Matt Matthew Max Melissa
    Michael Michelle Miguel Mike Nancy Natalie Nathan Neil Nick Nicole Nina Noah Oliver Olivia Oscar Patricia Patrick
    Paul Pedro Peter Phil Philip Rachel Ralph Ray Rebecca Richard Rick Rob Robert Roger Ron Rose Ross Roy Ruth Ryan Sam
    Samuel Sandra Sara Sarah Scott Sean Sharon Simon Sofia Sophie Stephanie Stephen Steve Steven Stuart Susan Taylor
    Ted Teresa Thomas Tim Todd Tom Tony Victor Victoria Walter Wendy William"""
)
NOUNS = _split(
    """account action activity address age agent air album alert amount animal answer apartment apple area army art
    article artist audience author bag balance ball band bank bar base battery beach bed bell bill bird birth block
    blog blood board boat body book books border boss bottle bottom box boy branch bread bridge brother budget building
    bus business button cake calendar camera camp capital car card career case cash castle cat category cause cell
    center chain chair challenge chance channel chapter character chart child choice church circle city class client
    climate clock cloud club coach coast coat code coffee collection color column comment community company computer
    concert condition contact content contract control cookie corner cost count country course court cover crew
    criminal crisis crop cross crowd cup currency customer damage dance data date daughter day deal debt decision deep
    degree delivery design desk detail device diet dinner direction director disk distance doctor document dog door
    dream dress drink driver duty earth edge editor effect election energy engine entry error event exam example
    exchange exit expert eye face factory family fan farm father feature fee field figure file film filter fire fish
    flag flight floor flower focus folder food foot forecast forest form frame friend front fruit fuel function fund
    future gallery game garden gas gate gift girl glass goal gold grade grass ground group guard guest guide hair half
    hall hand harbor hat head health heart heat height hill history hole holiday home hospital host hotel hour house
    human image income industry injury inventory island item job journey judge juice kitchen label lake land language
    law lawyer leader leaf league leg length lesson letter level library license life light limit line list location
    lock log logo loss lunch machine magazine mail manager map mark market master match material meal meat media meeting
    member memory menu message metal method milk mind minute mirror mission mode model moment money month mood moon
    morning mother motor mountain mouse mouth movie museum music nation nature network news night noise note notice
    number nurse ocean office oil orange order origin owner page paint pair palace paper parent park parking part
    partner party password path patient payment peace people period person phone photo picture piece pilot place plan
    plane planet plant plate platform player pocket poem point police policy pool population port position post power
    present price prince prison prize problem process product profile profit program project purchase quality quarter
    queen question quote race radio radius rain range rate rating reason receipt recipe record region release report
    request resource restaurant result review ride ring risk river road robot rock role roof room root round route rule
    salary sale sand scale scene schedule school science score screen sea season seat secret section sentence series
    server service session shadow shape share ship shirt shoe shop show sign signal sister site size skill skin sky
    smile snow society soil soldier solution son song sound soup source space speed spirit sport spring staff stage star
    state station status step stock stone store storm story street student studio style subject sugar summary summer
    sun supply support surface system table tail target task tax tea teacher team temperature test text theory ticket
    tide time tip title tool topic tower town toy track trade traffic train transport travel treatment tree trial trip
    truck truth uncle unit user valley value vehicle version video view village visit voice volume wall war warning
    watch water wave weather web wedding week weight wheel wife wind window winter woman wood word work worker world
    writer year zone"""
)
ADJECTIVES = _split(
    """old new big small good bad long short high low young early late great little large hot cold warm cool dry wet
    clean dirty fast slow easy hard soft loud quiet dark bright light heavy strong weak rich poor full empty open closed
    safe quick simple happy sad angry kind nice fair free real fresh deep wide narrow thin thick round flat
    sharp sweet plain fine rare common local public private secret red green blue yellow black white brown orange
    purple pink golden silver northern southern modern ancient famous beautiful little lucky busy calm brave wild
    """
)
VERBS = _split(
    """opened closed found lost made kept left held saw heard knew liked loved wanted needed used moved carried showed
    called asked helped bought sold sent took gave brought built broke watched followed crossed reached passed turned
    painted cleaned counted covered filled visited remembered forgot"""
)
WORDS = ("today", "again", "slowly", "early", "later", "often", "together", "quickly", "there", "once", "twice", "soon")
PLAIN = tuple(dict.fromkeys(NOUNS + ADJECTIVES + VERBS + WORDS + ANIMALS + FOODS + JOBS))
RESERVED = frozenset(("language", "key", "order", "distance", "last", "code", "password"))
"""Words of the fixed templates: never counted as held out."""

PLACES = ("in the morning", "in the evening", "by the river", "near the station", "at night", "in the garden",
          "along the river", "on the hill", "at home", "in the city", "before lunch", "after the rain", "every day",
          "last year", "in the summer", "at the market", "on the road", "in the old house")  # fmt: skip


def narrowed(lexicon: Lexicon, words: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `words` that the checkpoint knows as one token, with and without a space in front."""
    return tuple(dict.fromkeys(w for w in words if w in lexicon.rank and f" {w}" in lexicon.rank))


def sentence(rng: random.Random, lexicon: Lexicon) -> str:
    """One plain sentence of common words, which never looks like a fact that is asked for."""
    noun, word = lexicon.common_nouns, lexicon.adjectives
    form = rng.randrange(9)
    a, b, c = rng.choice(noun), rng.choice(noun), rng.choice(word)
    verb, where = rng.choice(VERBS), rng.choice(PLACES)
    if form == 0:
        return f"The {c} {a} {verb} the {b} {where}."
    if form == 1:
        return f"The {a} was {c} and the {b} {verb} the {rng.choice(noun)} {where}."
    if form == 2:
        return f"{rng.choice(lexicon.proper)} {verb} the {a} and the {c} {b}."
    if form == 3:
        return f"We {verb} a {c} {a} {where}, and then the {b}."
    if form == 4:
        return f"They {verb} {rng.randint(2, 99)} {a}s {where}." if rng.random() < 0.3 else f"They {verb} it {where}."
    if form == 5:
        return f"There was a {c} {a} near the {b}."
    if form == 6:
        return f"{where[0].upper()}{where[1:]}, {rng.choice(lexicon.proper)} {verb} the {a} of the {b}."
    if form == 7:
        return f"In {rng.randint(1800, 2030)} the {a} and the {b} were still {c}."
    return " ".join((rng.choice(lexicon.plain).capitalize(), *rng.choices(lexicon.plain, k=rng.randint(3, 10)))) + "."
