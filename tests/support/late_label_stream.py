"""A stream of pictures whose labels come some records later, some wrong at first and corrected afterwards."""

from __future__ import annotations

from pictures import picture

from streamcl.requests.label import Label

CLASSES = ("ant", "bee", "cat", "dog")


def truth(number):
    return CLASSES[number * 7 % 11 % 4]


def item(number, label):
    image = picture(truth(number), number)
    subject, privacy = f"p{number % 5}", "core"
    return {"image": image, "label": label, "id": f"s{number}", "subject": subject, "privacy": privacy}


class Pictures:
    """Records in order. delay: records after which a label comes; None: with the record.

    wrong: {number: label} at first; each is corrected `patience` records after its label. withdrawn: numbers
    whose labels are taken back as late, twice; again: those of them that are labelled once more `patience`
    records later. never: numbers without a label. Iterating anew begins anew.
    """

    def __init__(self, count=64, delay=None, wrong=None, patience=16, withdrawn=(), again=(), never=()):
        self.count, self.delay, self.patience = count, delay, patience
        self.wrong = {int(number): name for number, name in (wrong or {}).items()}
        self.withdrawn, self.again, self.never = set(withdrawn), set(again), set(never)

    def first_label(self, number):
        return None if number in self.never else self.wrong.get(number, truth(number))

    def __iter__(self):
        delay = self.delay
        for number in range(self.count + (delay or 0) + 2 * self.patience):
            if number < self.count:
                yield item(number, self.first_label(number) if delay is None else None)
            labelled = number - (delay or 0)
            if delay is not None and 0 <= labelled < self.count and labelled not in self.never:
                yield Label(f"s{labelled}", self.first_label(labelled))
            corrected = labelled - self.patience
            if corrected in self.wrong:
                yield Label(f"s{corrected}", truth(corrected))
            if corrected in self.withdrawn:
                yield from [{"label_of": f"s{corrected}", "withdraw": True}] * 2
            if (again := corrected - self.patience) in self.again:
                yield Label(f"s{again}", truth(again))


class DataSet:
    """150 of the pictures, read by index, each with its label."""

    def __len__(self):
        return 150

    def __getitem__(self, index):
        return item(index, truth(index))
