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

    wrong: {number: label} at first; each is corrected `patience` records after its label. Iterating anew
    begins anew.
    """

    def __init__(self, count=64, delay=None, wrong=None, patience=16):
        self.count, self.delay, self.patience = count, delay, patience
        self.wrong = {int(number): name for number, name in (wrong or {}).items()}

    def __iter__(self):
        delay = self.delay
        for number in range(self.count + (delay or 0) + self.patience):
            if number < self.count:
                first = self.wrong.get(number, truth(number))
                yield item(number, first if delay is None else None)
            labelled = number - (delay or 0)
            if delay is not None and 0 <= labelled < self.count:
                yield Label(f"s{labelled}", self.wrong.get(labelled, truth(labelled)))
            corrected = labelled - self.patience
            if corrected in self.wrong:
                yield Label(f"s{corrected}", truth(corrected))


class DataSet:
    """150 of the pictures, read by index, each with its label."""

    def __len__(self):
        return 150

    def __getitem__(self, index):
        return item(index, truth(index))
