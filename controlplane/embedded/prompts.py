"""What the load generator asks: short questions, tasks on a passage, and longer requests."""

from __future__ import annotations

from typing import Final

_PASSAGES: Final = (
    "The harbour of the old town silts up a little every winter. In spring two dredgers work for three "
    "weeks, and until they are done the larger ferries turn at the outer quay, which adds twelve minutes "
    "to the crossing. The council has discussed a second breakwater since 1998 and has priced it four "
    "times.",
    "Our team moved the nightly report from one large query to six small ones. The total time fell from "
    "forty minutes to nine, but on Mondays two of the six still wait for the weekend import to finish. "
    "Nobody had noticed before, because the large query hid the wait inside its own length.",
    "A bakery on the corner sells bread until noon and coffee until six. The owner bakes alone, starting "
    "at three. When she hired a helper last year she did not bake more; she slept until four.",
    "Glaciers record the air of the past in bubbles. A core three kilometres long holds about eight "
    "hundred thousand years, the oldest layers pressed thinner than paper. Drilling one takes several "
    "short summers, because the camp must be gone before the dark.",
)
_TASKS: Final = (
    "Summarise this in one sentence:",
    "Write a headline for this text:",
    "Which question does this text leave open?",
    "List three facts from this text:",
    "Rewrite this for a ten-year-old:",
)
_QUESTIONS: Final = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three uses of baking soda.",
    "What does a thermostat do?",
    "Explain what a queue is, in two sentences.",
    "How many minutes are there in a day?",
    "What is the difference between weather and climate?",
    "Give me a synonym for 'quick' and use it in a sentence.",
    "Which planet is closest to the sun?",
    "How do I boil an egg?",
    "What is photosynthesis?",
    "Translate 'good morning' into Spanish.",
    "Why do leaves change colour in autumn?",
    "What is a prime number? Give three examples.",
    "How does a bicycle stay upright?",
    "What should I pack for a day of hiking?",
)
_REQUESTS: Final = (
    "Write a short, friendly e-mail to a colleague: the meeting on Thursday moves to Friday at ten, the "
    "room stays the same, and they should bring the figures for the third quarter.",
    "I have two free evenings a week and would like to learn to cook. Suggest a plan for the first "
    "month, with one simple dish each evening and the one thing that I learn from it.",
    "Describe a rainy street in a small town at night, in five sentences, from the point of view of a "
    "cat that is looking for a dry place.",
    "Explain to a new member of the team why we write tests before we change old code, and name two "
    "cases in which it is not worth it.",
    "My train leaves at 7:40 and the walk to the station takes 18 minutes. I need 35 minutes in the "
    "morning. When should I get up, and what could I do in the evening to save five minutes?",
    "Compare travelling by train and by car for a family of four with a dog: cost, time, comfort. End "
    "with a recommendation.",
)

PROMPTS: Final = (
    *_QUESTIONS,
    *_REQUESTS,
    *(f"{task}\n\n{passage}" for task in _TASKS for passage in _PASSAGES),
)
