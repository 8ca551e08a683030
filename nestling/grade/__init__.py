"""Other people's submissions, run safely and scored fairly. Nothing else imports this; nothing of theirs is imported.

    box.py         a command -> how it ended, walled in; the level of the walls is found by trying
    intake.py      zips, folders, exports -> submissions
    rules.py       a program's source -> findings for a person
    lay.py         the teacher's data -> inputs that tell nothing
    score.py       what a program wrote -> two scores, strict and found
    batch.py       submissions -> runs -> records
    marks.py       a record and a rubric -> marks
    results.py     records and marks -> results.json, feedback.txt, leaderboard.csv, index.html
    autograder.py  the same as a zip for Gradescope
    facts.py       what travels between them
"""
