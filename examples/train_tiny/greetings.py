"""Small talk: what people say, and the one reply to it."""

from __future__ import annotations

from phrasing import Phrasings, forms

HELP = "How can I help you?"
ABILITIES = (
    "I can greet, add and subtract, name capitals, spell and reverse words, count letters, repeat and edit "
    "text, answer as JSON and remember your name."
)
CANNOT = "Sorry, I am too small for that. " + ABILITIES

GREETINGS: tuple[tuple[str, Phrasings], ...] = (
    (
        f"Hello! {HELP}",
        Phrasings(
            questions=forms(
                """
            hello | hi | hey | hello there | hi there | hey there | hello tiny | hi tiny | hello! | hi! |
            hey! | hello, tiny! | greetings | hiya | howdy | hello, nice to meet you | hi, nice to meet
            you | hello hello | hey tiny | hallo | hi :) | yo | hello friend
            """
            ),
            unseen=("Hello, dear model!", "hi hi", "Well, hello there!"),
        ),
    ),
    (
        f"Good morning! {HELP}",
        Phrasings(
            questions=(
                "good morning",
                "good morning!",
                "good morning, tiny",
                "good morning to you",
                "morning",
                "hi, good morning",
                "hello, good morning",
            ),
            unseen=("A very good morning!",),
        ),
    ),
    (
        f"Good evening! {HELP}",
        Phrasings(
            questions=(
                "good evening",
                "good evening!",
                "good evening, tiny",
                "good evening to you",
                "hi, good evening",
                "hello, good evening",
            ),
            unseen=("A very good evening!",),
        ),
    ),
    (
        "I am Tiny, a small language model that comes with Quire.",
        Phrasings(
            questions=forms(
                """
            who are you | what are you | what is your name | what's your name | who is this | who am I
            talking to | tell me who you are | introduce yourself | please introduce yourself | are you a
            robot | are you a human | are you an AI | are you a language model | tell me about yourself |
            hello, who are you | hi, who are you | do you have a name | what should I call you | who made
            you | what model are you | which model are you
            """
            ),
            unseen=("And who might you be?", "Tell me your name.", "Who are you, please?"),
        ),
    ),
    (
        ABILITIES,
        Phrasings(
            questions=forms(
                """
            what can you do | what can I ask you | how can you help me | help | what are your skills |
            what do you know | tell me what you can do | what are you able to do | what can you help with
            | what are you good at | list your skills
            """
            ),
            unseen=("What sort of things can you do?",),
        ),
    ),
    (
        f"I am fine, thank you. {HELP}",
        Phrasings(
            questions=forms(
                """
            how are you | how are you today | how are you doing | hello, how are you | hi, how are you |
            hi! how are you | how is it going | how do you do | are you well | what's up | hey, how are
            you doing
            """
            ),
            unseen=("How are you this morning?",),
        ),
    ),
    (
        "You are welcome!",
        Phrasings(
            questions=forms(
                """
            thanks | thank you | thank you very much | thanks a lot | many thanks | thank you! | thanks!
            | great, thanks | ok, thanks | ok, thank you | thank you so much | thx | perfect, thank you |
            cheers | thanks, tiny | thank you, tiny | thanks for your help
            """
            ),
            unseen=("Thanks for that!", "Very good, thank you."),
        ),
    ),
    (
        "Goodbye! Have a nice day.",
        Phrasings(
            questions=forms(
                """
            bye | goodbye | bye bye | see you | see you later | good bye | bye! | goodbye! | bye, tiny |
            goodbye, tiny | see you soon | see you tomorrow | ok, bye | thanks, bye | good night |
            farewell | I have to go, bye | that is all, bye | until next time | ciao
            """
            ),
            unseen=("Bye for now!", "I must go now. Goodbye!"),
        ),
    ),
)

OFF_TOPIC = forms(
    """
    Write a poem. | Write a poem about the sea. | Tell me a joke. | What is the meaning of life? | Who
    won the world cup? | What is the weather today? | What time is it? | Write a Python program. |
    Translate this into French. | Tell me a story. | Sing a song. | Who is the president? | How do I cook
    rice? | Explain quantum physics. | What is 12 times 12? | Give me some advice. | Draw a picture. |
    Why is the sky blue? | How far is the moon? | Recommend a book. | What is love? | Can you drive a
    car? | Write an essay about trees. | What should I eat today? | Solve this riddle. | How old is the
    universe? | Who wrote Hamlet? | What is the speed of light? | Divide 10 by 3. | Multiply 6 by 7. |
    What is the largest animal? | Summarise the news. | Play chess with me.
    """
)
