"""What people do with workflows, whoever asks for it: `orders`. None of it runs a method of theirs."""
