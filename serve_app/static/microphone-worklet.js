// On the audio thread: converts the microphone's samples to 16-bit integers, and posts blocks of 0.1 s with their peak level.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
    this.peak = 0;
  }

  process([[samples]]) {
    for (const sample of samples ?? []) {
      const limited = Math.max(-1, Math.min(1, sample));
      this.peak = Math.max(this.peak, Math.abs(limited));
      this.block[this.filled++] = limited * 32767;
      if (this.filled === this.block.length) {
        this.port.postMessage({ block: this.block, level: this.peak });
        this.block = new Int16Array(this.block.length);
        this.filled = this.peak = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
